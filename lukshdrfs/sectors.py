"""Arithmetic between byte ranges and sector ranges. Pure: no I/O, no keys."""

from __future__ import annotations

from dataclasses import dataclass

SECTOR = 512
"""
Bytes of the sectors by which LUKS counts, whatever sector size a segment has.

So do numbers of IVs (LUKS2 specification 2.6, `iv_tweak`), offsets of LUKS1, and the sectors of keyslot areas.
"""

SECTOR_SIZES = (512, 1024, 2048, 4096)
"""Legal encryption sector sizes in bytes (LUKS2 specification, segment object `sector_size`)."""


def round_down(value: int, unit: int) -> int:
    """Return the largest multiple of `unit` that is not above `value`."""
    return value - value % unit


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


@dataclass(frozen=True, slots=True)
class SectorSpan:
    """
    The whole sectors that cover a byte range.

    `skip` bytes of the first sector come before the range, so `data[skip : skip + size]` of the
    span's plaintext is what the caller asked for.
    """

    first: int
    """Number of the first sector, in sectors of `sector_size`."""
    count: int
    """How many sectors."""
    skip: int
    """Bytes of the first sector before the range."""
    size: int
    """Bytes in the range."""
    sector_size: int
    """Bytes in a sector."""

    @classmethod
    def covering(cls, offset: int, size: int, sector_size: int) -> SectorSpan:
        """Return the smallest span that holds `size` bytes from byte `offset` on; both at least 0."""
        first, skip = divmod(offset, sector_size)
        count = -(-(skip + size) // sector_size)
        return cls(first, count, skip, size, sector_size)

    @property
    def offset(self) -> int:
        """Byte offset of the first sector."""
        return self.first * self.sector_size

    @property
    def covered_size(self) -> int:
        """Bytes in all the sectors."""
        return self.count * self.sector_size

    @property
    def partial_head(self) -> bool:
        """Whether the first sector is only partly in the range."""
        return self.skip > 0 or 0 < self.size < self.sector_size

    @property
    def partial_tail(self) -> bool:
        """Whether the last sector's end is outside of the range."""
        return self.count > 0 and (self.skip + self.size) % self.sector_size > 0
