"""What is asked of the storage, noted or made to fail."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest


def note_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return what is asked of the storage, in its order: writes with their offset, and fsyncs."""
    noted: list[tuple[str, int]] = []
    pwrite, fsync = os.pwrite, os.fsync

    def noting_pwrite(descriptor: int, data: bytes, offset: int) -> int:
        noted.append(("write", offset))
        return pwrite(descriptor, data, offset)

    def noting_fsync(descriptor: int) -> None:
        noted.append(("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync", -1))
        fsync(descriptor)

    monkeypatch.setattr(os, "pwrite", noting_pwrite)
    monkeypatch.setattr(os, "fsync", noting_fsync)
    return noted


def failing(code: int) -> Callable[..., int]:
    """Return a system call that fails."""

    def fail(*_arguments: object, **_options: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail
