"""
Changes of a header as values: what is to be written where, in steps that each must be on the storage before the next.

Whatever the moment at which the power fails, what is there then opens with the old keys or with the new ones. That
holds for storage that writes sectors of 512 bytes whole, in any order between two syncs. The one exception says so of
itself: an edit `in_place`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes for a place in the header."""

    offset: int
    """From the header's start, in bytes."""
    data: bytes

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + len(self.data)


Step = tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """Steps in their order; all of one step's writes are synced before the next step begins."""

    steps: tuple[Step, ...]
    in_place: bool = False
    """Whether key material is overwritten by its successor: a crash before the first step's end loses that keyslot."""

    def then(self, other: HeaderEdit) -> HeaderEdit:
        """Return both, one after the other."""
        return HeaderEdit(self.steps + other.steps, self.in_place or other.in_place)

    def applied_to(self, area: bytes) -> bytes:
        """Return a header's bytes as they are afterwards; it does not get longer."""
        data = bytearray(area)
        for write in (write for step in self.steps for write in step):
            if write.end > len(data):
                raise ValueError(f"a write ends at byte {write.end} of {len(data)}")
            data[write.offset : write.end] = write.data
        return bytes(data)


def wiping(offset: int, size: int) -> HeaderEdit:
    """Return the overwriting of key material with random bytes, as unused areas have them."""
    return HeaderEdit(((Write(offset, os.urandom(size)),),))
