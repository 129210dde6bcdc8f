"""What of a file has never been written: holes, and space that was only set aside."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from dataclasses import dataclass, field

from lukshdrfs.sectors import SECTOR

BLOCK = SECTOR
"""Bytes of a block, whose marks are its own."""

_REMEMBERED = 1 << 16
_LEAST_DATA = 1 << 20


@dataclass(slots=True)
class Holes:
    """Ranges of bytes that read as zeros and are not stored."""

    size: int = 0
    """Bytes of all of them."""
    count: int = 0
    starts: list[int] = field(default_factory=list)
    """Of the first 65536: where each begins, in order."""
    ends: list[int] = field(default_factory=list)
    """And ends."""

    def data_between(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges (start, end) from `start` to before `end` that are in no hole."""
        found = []
        number = max(0, bisect_right(self.starts, start) - 1)
        while start < end:
            if number < len(self.starts) and self.ends[number] <= start:
                number += 1
                continue
            hole = min(end, self.starts[number]) if number < len(self.starts) else end
            if hole > start:
                found.append((start, hole))
            start = max(hole, self.ends[number]) if number < len(self.starts) else end
        return found

    def add(self, start: int, end: int) -> None:
        """Take another one, behind those before. It should begin and end with a block of 512 bytes."""
        self.size += end - start
        self.count += 1
        if self.count <= _REMEMBERED:
            self.starts.append(start)
            self.ends.append(end)


def find_holes(descriptor: int | None, size: int) -> Holes:
    """
    Return the holes of an open file of `size` bytes; none on what has no such thing, as a block device.

    By lseek(2)'s SEEK_DATA and SEEK_HOLE, for which space that fallocate(2) set aside, and nobody wrote to, is a hole
    on ext4, XFS, btrfs and tmpfs.
    """
    holes = Holes()
    at = 0
    while descriptor is not None and at < size:
        data = _seek(descriptor, at, os.SEEK_DATA, size)
        # whole blocks of 512 bytes, as nearly all file systems have them anyway
        start, end = -(-at // BLOCK) * BLOCK, data if data == size else data // BLOCK * BLOCK
        if end > start:
            holes.add(start, end)
        at = max(data + 1, _seek(descriptor, data, os.SEEK_HOLE, size)) if data < size else size
    return holes


def unwritten_end(descriptor: int, start: int, size: int) -> int:
    """
    Return how many bytes at the end of an open file of `size` bytes are a hole, where nothing from `start` on is one.

    So a file looks that was made longer. 0 for what is sparse elsewhere, too, or not at all, and for less than 1 MiB
    before the hole: a sparse disk with a partition table and nothing else.
    """
    hole = _seek(descriptor, start, os.SEEK_HOLE, size)
    if not start + _LEAST_DATA <= hole < size or _seek(descriptor, hole, os.SEEK_DATA, size) < size:
        return 0
    return size - hole


def _seek(descriptor: int, at: int, whence: int, size: int) -> int:
    try:
        return min(size, os.lseek(descriptor, at, whence))
    except OSError as error:
        # ENXIO: no data from here on
        return size if error.errno == errno.ENXIO or whence == os.SEEK_HOLE else at


def free_space(descriptor: int) -> int | None:
    """Return how many bytes this user may still write to a file's file system; None where it does not say."""
    status = os.fstatvfs(descriptor)
    return status.f_frsize * (status.f_bavail if os.geteuid() else status.f_bfree) if status.f_blocks else None
