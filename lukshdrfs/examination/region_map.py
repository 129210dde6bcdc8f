"""What was found where, cell by cell: the picture's raw material."""

from __future__ import annotations

from enum import IntEnum

from lukshdrfs.examination.block_scan import REGION

_MOST_CELLS = 1 << 16


class Kind(IntEnum):
    """What a cell holds; of several, the highest."""

    UNREAD = 0
    RANDOM = 1
    UNEVEN = 2
    """It fails a test, or has blocks of few byte values: low entropy."""
    REPEATED = 3
    ZERO = 4
    HOLE = 5
    SIGNATURE = 6


class RegionMap:
    """A kind for each cell of a payload: at most 65536 cells, so memory is bounded."""

    def __init__(self, size: int) -> None:
        """Divide `size` bytes into cells of 64 KiB, or as many times two of it as is needed."""
        self.cell_size = REGION
        """Bytes of a cell; the last one may have fewer."""
        while size > _MOST_CELLS * self.cell_size:
            self.cell_size *= 2
        self.cells = bytearray(-(-size // self.cell_size))
        """A `Kind` each."""

    def mark(self, start: int, end: int, kind: Kind) -> None:
        """Say what the bytes from `start` to before `end` are."""
        for cell in range(start // self.cell_size, -(-end // self.cell_size)):
            self.cells[cell] = max(self.cells[cell], kind)

    def shrunk(self, most: int) -> bytes:
        """Return at most `most` cells, each of equally many of these."""
        together = max(1, -(-len(self.cells) // most))
        return bytes(max(self.cells[at : at + together]) for at in range(0, len(self.cells), together))
