"""A segment in its place."""

from __future__ import annotations

from dataclasses import dataclass

from lukshdrfs.cipher import SectorCipher


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

    @property
    def end(self) -> int:
        """First byte of the plaintext behind it."""
        return self.start + self.size
