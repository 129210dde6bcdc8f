"""A small memory control group, of either version."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

OLD, NEW = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryCgroup:
    """Processes in it can have so much memory together, caches included."""

    folder: Path

    @property
    def is_old(self) -> bool:
        """Whether it is of version 1, where whoever needs memory may have to wait for the writing of others' pages."""
        return self.folder.is_relative_to(OLD)

    def joining(self) -> list[str]:
        """Return what is put in front of a command, to run it in there."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$0" "$@"']

    def was_short(self) -> bool:
        """Whether anybody in there has had to wait for memory."""
        if self.is_old:
            return int((self.folder / "memory.failcnt").read_text()) > 0
        events = dict(line.split() for line in (self.folder / "memory.events").read_text().splitlines())
        return int(events["max"]) > 0


@contextlib.contextmanager
def memory_cgroup(size: int) -> Iterator[MemoryCgroup]:
    """Have a group with `size` bytes; skip the test where the kernel has none for us."""
    old = OLD.is_dir()
    folder = (OLD if old else NEW) / f"lukshdrfs-test-{os.getpid()}"
    try:
        if not old and "memory" not in (NEW / "cgroup.subtree_control").read_text().split():
            pytest.skip("there is no memory controller below /sys/fs/cgroup (cgroup.subtree_control)")
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"a memory control group cannot be made below /sys/fs/cgroup: {error}")
    try:
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(size))
        yield MemoryCgroup(folder)
    finally:
        folder.rmdir()
