"""
Locks on ranges of a volume, so that a sector is never seen or written half-way.

A write of a part of a sector reads the sector, changes it and writes it back. In between, nobody else may write
to that sector, or his bytes are lost; and nobody may read it, for in CBC mode half a ciphertext is no plaintext.

They are in C because the fast lane's threads take the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lukshdrfs.native import ffi, lib

_PAST_ALL = (1 << 64) - 1


class SectorLocks:
    """
    Shared locks for readers and exclusive ones for writers, on ranges of bytes.

    Who comes first is served first: a stream of readers does not keep a writer out.
    """

    def __init__(self) -> None:
        locks = lib.sector_locks_new()
        if locks == ffi.NULL:
            raise MemoryError
        self._locks = ffi.gc(locks, lib.sector_locks_free)

    @contextmanager
    def hold(self, start: int, end: int, *, exclusive: bool) -> Iterator[None]:
        """
        Wait until the bytes from `start` to before `end` are free, and hold them.

        A thread holds one range at a time, so no two can wait for each other.
        """
        held = ffi.new("struct sector_range *")
        lib.sector_locks_hold(self._locks, held, start, min(end, _PAST_ALL), exclusive)
        try:
            yield
        finally:
            lib.sector_locks_release(self._locks, held)

    @property
    def native(self) -> object:
        """The C object, which lives as long as this one."""
        return self._locks
