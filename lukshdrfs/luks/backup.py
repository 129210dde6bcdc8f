"""A header as cryptsetup's `luksHeaderBackup` writes it, so that each can restore what the other has saved."""

from __future__ import annotations

from lukshdrfs.luks.keys.material import AREA_ALIGNMENT
from lukshdrfs.luks.luks1.phdr import PHDR, SLOT, SLOTS
from lukshdrfs.luks.model import Header
from lukshdrfs.sectors import round_up

_PHDR_SIZE = PHDR.size + SLOTS * SLOT.size


def backup_of(header: Header) -> bytes:
    """
    Return the bytes of a backup: metadata and all keyslot areas.

    Of LUKS1, what lies between phdr and keyslots is left out, for it could hold old signatures; the last area is
    filled up to its alignment (cryptsetup, lib/luks1/keymanage.c, `LUKS_hdr_backup`).
    """
    if header.version != 1:
        return header.area
    data = header.area.ljust(round_up(len(header.area), AREA_ALIGNMENT), b"\0")
    if min((slot.area.offset for slot in header.keyslots), default=AREA_ALIGNMENT) < AREA_ALIGNMENT:
        return data
    return data[:_PHDR_SIZE].ljust(AREA_ALIGNMENT, b"\0") + data[AREA_ALIGNMENT:]
