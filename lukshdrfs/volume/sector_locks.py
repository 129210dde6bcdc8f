"""
Locks on ranges of a volume, so that a sector is never seen or written half-way.

A write of a part of a sector reads the sector, changes it and writes it back. In between, nobody else may write
to that sector, or his bytes are lost; and nobody may read it, for in CBC mode half a ciphertext is no plaintext.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True, slots=True, eq=False)
class _Range:
    start: int
    end: int
    exclusive: bool

    def excludes(self, other: _Range) -> bool:
        return (self.exclusive or other.exclusive) and self.start < other.end and other.start < self.end


class SectorLocks:
    """
    Shared locks for readers and exclusive ones for writers, on ranges of bytes.

    Who comes first is served first: a stream of readers does not keep a writer out.
    """

    def __init__(self) -> None:
        self._freed = threading.Condition()
        self._asked: list[_Range] = []
        """The ranges that are held or waited for, in the order in which they were asked for."""

    @contextmanager
    def hold(self, start: int, end: int, *, exclusive: bool) -> Iterator[None]:
        """
        Wait until the bytes from `start` to before `end` are free, and hold them.

        A thread holds one range at a time, so no two can wait for each other.
        """
        wanted = _Range(start, end, exclusive)
        with self._freed:
            self._asked.append(wanted)
            while any(
                earlier.excludes(wanted) for earlier in takewhile(lambda other: other is not wanted, self._asked)
            ):
                self._freed.wait()
        try:
            yield
        finally:
            with self._freed:
                self._asked.remove(wanted)
                self._freed.notify_all()
