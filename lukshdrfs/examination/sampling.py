"""Which parts of a payload are read: all of it, or a sample that meets whatever is not tiny."""

from __future__ import annotations

import random
from collections.abc import Iterator

from lukshdrfs.examination.block_scan import REGION

_MIB = 1 << 20
EDGE = _MIB
"""Bytes that are read at either end in any case: that is where formats have their marks."""
PIECES = 1024
"""Into how many parts the rest is divided; of each, one piece is read."""
PIECE = 256 * 1024


class Sample:
    """
    The regions to read, in their order.

    With `whole`, or if there is not more than that anyway, all of them; else the first and the last MiB and 256 MiB
    between: of each of 1024 equal parts, a piece of 256 KiB. Its place in the part is drawn, so that what comes at
    equal distances, as a file system's tables do, is neither always met nor never; always the same for a payload's
    size, so that two looks can be compared. What is as large as two parts is met for sure.
    """

    def __init__(self, size: int, *, whole: bool = False) -> None:
        """Choose from `size` bytes."""
        if whole or size <= 2 * EDGE + PIECES * PIECE:
            self._ranges = [(0, size)]
        else:
            self._ranges = list(_spread(size))
        self.size = sum(end - start for start, end in self._ranges)
        """Bytes to read."""
        self.regions = sum(-(-(end - start) // REGION) for start, end in self._ranges)
        """How many regions they are."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of each region, at most REGION bytes, in bytes."""
        for first, end in self._ranges:
            for start in range(first, end, REGION):
                yield start, min(end, start + REGION)


def _spread(size: int) -> Iterator[tuple[int, int]]:
    last = (size - EDGE) // REGION * REGION
    between = last - EDGE
    draw = random.Random(size)  # noqa: S311 - it spreads, and hides nothing
    yield 0, EDGE
    before = EDGE
    for piece in range(PIECES):
        low, high = (EDGE + between * n // PIECES for n in (piece, piece + 1))
        start = max(before, draw.randint(low, max(low, high - PIECE)) // REGION * REGION)
        before = min(last, start + PIECE)
        yield start, before
    yield last, size
