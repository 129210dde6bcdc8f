"""
Where the plaintext of a volume is on its payload.

Extents follow one another from byte 0 on; where two meet is a border, and the last border is the volume's end. Where a
byte is on the payload, and with which IV, depends on the extent that it is in, and not on where that one's borders are:
a border can be moved. The same in C is extent_map.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lukshdrfs.cipher import SectorCipher
from lukshdrfs.sectors import SECTOR, SectorSpan, round_down, round_up


@dataclass(frozen=True, slots=True)
class Extent:
    """A segment in its place: which plaintext it holds, and where its ciphertext is."""

    start: int
    """First byte of the plaintext."""
    size: int
    """Bytes; a multiple of the sector size."""
    payload_offset: int
    """First byte on the payload."""
    sector_size: int
    iv_tweak: int
    """Number of the first sector's IV, in 512-byte sectors."""
    cipher: SectorCipher | None
    """None for a linear segment, which is stored as it is."""
    dynamic: bool = False
    """Whether it reaches as far as the payload does: only the last one can."""
    error: int = 0
    """What requests for it fail with, an errno; 0 if they do not."""

    @property
    def end(self) -> int:
        """First byte of the plaintext behind it."""
        return self.start + self.size

    @property
    def payload_shift(self) -> int:
        """Bytes from any place on the volume to its place on the payload."""
        return self.payload_offset - self.start

    @property
    def iv_shift(self) -> int:
        """512-byte sectors from the number of any sector of the volume to the number of its IV."""
        return self.iv_tweak - self.start // SECTOR


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a range of plaintext that is in one extent, and the whole sectors around it."""

    extent: Extent
    start: int
    """First byte of the part, on the volume."""
    span: SectorSpan
    """Its whole sectors, counted from the extent's start."""

    @property
    def end(self) -> int:
        """The byte behind the part."""
        return self.start + self.span.size

    def place_of(self, at: int) -> int:
        """Return where on the payload byte `at` of the whole sectors is."""
        return self.extent.payload_offset + self.span.offset + at

    def decrypt(self, sectors: memoryview, at: int = 0) -> None:
        """Decrypt whole sectors in place, of which the first one is at byte `at` of the piece's."""
        if self.extent.cipher:
            self.extent.cipher.decrypt(sectors, self._number_of(at))

    def encrypt(self, sectors: memoryview) -> None:
        """Encrypt all of its sectors in place."""
        if self.extent.cipher:
            self.extent.cipher.encrypt(sectors, self._number_of(0))

    def _number_of(self, at: int) -> int:
        return self.extent.iv_tweak + (self.span.offset + at) // SECTOR


class ExtentMap:
    """The extents of a volume in their order. Any number of threads may use it; one at a time may change it."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        """Put the extents together, which follow one another without gaps."""
        self._extents = tuple(extents)
        self._widest = max(extent.sector_size for extent in extents)
        self._beyond = self._widest if any(extent.start % extent.sector_size for extent in extents) else 0

    @property
    def extents(self) -> tuple[Extent, ...]:
        """All of them, as they are now."""
        return self._extents

    @property
    def last(self) -> Extent:
        """The one whose end is the volume's."""
        return self._extents[-1]

    @property
    def widest_sector(self) -> int:
        """Bytes of the largest sector."""
        return self._widest

    def widened(self, start: int, end: int) -> tuple[int, int]:
        """Return a range with the whole sectors around it, whatever extents it is in or will be: for its lock."""
        return max(0, round_down(start, self._widest) - self._beyond), round_up(end, self._widest) + self._beyond

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """
        Yield the pieces of a range. They stay true while the range is held, and no longer.

        The volume's end does not count: the last extent reaches as far as one asks.
        """
        extents = self._extents
        for extent in extents:
            first = max(start, extent.start)
            last = end if extent is extents[-1] else min(end, extent.end)
            if first < last:
                yield Piece(extent, first, SectorSpan.covering(first - extent.start, last - first, extent.sector_size))

    def move_border(self, number: int, to: int) -> None:
        """
        Move the border behind extent `number`; no byte gets another place or another IV by it.

        Only while all between its old place and the new one is held alone, or, for the last one, while nobody relies on
        what is there.
        """
        extents = list(self._extents)
        extents[number] = replace(extents[number], size=to - extents[number].start)
        if number + 1 < len(extents):
            after = extents[number + 1]
            extents[number + 1] = replace(
                after,
                start=to,
                size=after.end - to,
                payload_offset=to + after.payload_shift,
                iv_tweak=to // SECTOR + after.iv_shift,
            )
        self._extents = tuple(extents)
