"""
What a region's bytes show of themselves: counts of bytes, and blocks that random data do not have. In C.

How likely a random block is marked:

- all 512 bytes zero: 2^-4096;
- fewer than 179 different byte values (221 are usual): 2.9e-19, from the exact distribution of the number of
  occupied cells; so even among the blocks of 1 PiB, less than one in a million;
- 16 bytes, at a multiple of 16, that were in the same 64 KiB before: 2^-105 for each region. A cipher in ECB mode
  has them wherever the plaintext repeats;
- a whole block that was anywhere before: two fingerprints of 64 bits are equal by chance. Of these, 1.6 million at
  most are kept; to read 1 PiB makes about 10^13 comparisons, which is less than one in a million again.
"""

from __future__ import annotations

from dataclasses import dataclass

from lukshdrfs.examination._block_scan import ffi, lib
from lukshdrfs.payload.holes import BLOCK

REGION = 64 * 1024
"""Bytes that are counted together."""

ZERO, FEW_VALUES, REPEATS, COPY = (int(mark) for mark in (lib.SCAN_ZERO, lib.SCAN_FEW, lib.SCAN_REPEATS, lib.SCAN_COPY))
"""Marks of a block; see block_scan.h."""

_SLOTS = 1 << 21  # 32 MiB; three in four are used at most
_VALUES = 256


@dataclass(frozen=True, slots=True)
class RegionScan:
    """What was seen in one region."""

    size: int
    """Bytes."""
    bytes_statistic: float
    """Pearson's statistic of the byte values against equal shares: chi-square with 255 degrees in random data."""
    steps_statistic: float
    """The same of the exclusive or of each byte with the one before it."""
    marks: bytes
    """Of each whole block, the marks but COPY; empty if there are none."""


class BlockScanner:
    """Looks at regions one by one; remembers their blocks, and counts over all of them. Not thread-safe."""

    def __init__(self, slots: int = _SLOTS) -> None:
        """Remember three in four of `slots` blocks (a power of two), 16 bytes each. Raises MemoryError."""
        known = lib.known_blocks_new(slots)
        if known == ffi.NULL:
            raise MemoryError
        self._known = ffi.gc(known, lib.known_blocks_free)
        self._found = ffi.new("struct region_scan *")
        self._earlier = ffi.new("uint64_t[]", REGION // BLOCK)
        self._marks = ffi.buffer(self._found.marks)
        self._total = ffi.new("struct byte_counts *")
        self._size = 0

    @property
    def thinned(self) -> int:
        """Repeats were looked for among one block in 2 to the power of this."""
        return int(lib.known_blocks_thinned(self._known))

    def scan(self, data: memoryview) -> RegionScan:
        """Look at up to REGION bytes."""
        size, found = len(data), self._found
        lib.region_scan(found, self._total, ffi.from_buffer(data), size)
        self._size += size
        marks = self._marks[: size // BLOCK]
        return RegionScan(
            size,
            _pearson(found.bytes_squares, size),
            _pearson(found.steps_squares, size),
            marks if any(marks) else b"",
        )

    def copies(self, first: int, start: int, count: int) -> list[tuple[int, int]]:
        """
        Compare blocks of the region that was last looked at with all earlier ones; remember them.

        These are `count` blocks from the region's block `start` on; in the payload, they have the numbers `first` and
        following. Returns, of each that was there before, its number and that of the earlier one.
        """
        marks = self._found.marks + start
        done = lib.known_blocks_add(self._known, self._found.prints + start, marks, self._earlier + start, count, first)
        if not done:
            raise MemoryError
        found = self._marks[start : start + count]
        if not any(found):
            return []
        return [(first + n, self._earlier[start + n]) for n, mark in enumerate(found) if mark & COPY]

    def total(self) -> RegionScan:
        """Return the counts of everything that was looked at, taken together."""
        counts = [ffi.unpack(field, _VALUES) for field in (self._total.bytes, self._total.steps)]
        values, steps = (_pearson(sum(count * count for count in of), self._size) for of in counts)
        return RegionScan(self._size, values, steps, b"")


def _pearson(squares: int, size: int) -> float:
    """Return Pearson's statistic against equal shares, from the sum of the squared counts; exact but for rounding."""
    return (_VALUES * squares - size * size) / size if size else float(_VALUES - 1)
