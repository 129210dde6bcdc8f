"""Images that an engine serves, opened in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import commands

from lukshdrfs.errors import DeviceError
from lukshdrfs.payload import Access, EnginePayload, PayloadName, open_payload
from lukshdrfs.payload.qemu.engine import ENGINE


def opened(path: Path, *, read_only: bool = False, backing_chain: bool = False) -> EnginePayload:
    """Open an image as `mount` does."""
    payload = open_payload(PayloadName(str(path), "qcow2", backing_chain=backing_chain), Access(read_only=read_only))
    assert isinstance(payload, EnginePayload)
    return payload


def refusal(path: Path, *, read_only: bool = False, backing_chain: bool = False) -> str:
    """Return why an image is not opened, in one line which names it."""
    with pytest.raises(DeviceError) as caught:
        opened(path, read_only=read_only, backing_chain=backing_chain)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first_bytes(payload: EnginePayload, count: int = 8, offset: int = 0) -> bytes:
    """Read a little."""
    buffer = bytearray(count)
    payload.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def engines_of(path: Path) -> list[int]:
    """Return the processes that serve an image."""
    return [pid for pid, words in commands().items() if words[:1] == [ENGINE] and str(path) in words[-1]]


def engine_of(path: Path) -> int:
    """Return the process that serves an image."""
    (pid,) = engines_of(path)
    return pid
