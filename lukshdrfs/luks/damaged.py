"""
A damaged header as far as it can be made sense of, for reading what can be saved.

What is wrong is put right in a copy, in memory, and that then has to pass every check of a sound header: checksums and
magics are made anew, what is cut off counts as zeros, LUKS1 keyslots that make no sense count as unused. Keys are
verified against their digest as always, so no wrong key is taken; but which payload the header was for, and that
nobody has tampered with it, is no longer known.
"""

from __future__ import annotations

from itertools import pairwise

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.header import header_extent, is_luks1
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT, material_size
from lukshdrfs.luks.luks1.phdr import DISABLED, ENABLED, HEADER_SIZE, PHDR, SLOT, Slot, read_phdr, read_slots
from lukshdrfs.luks.luks2.binary import PRIMARY_MAGIC, with_new_checksum
from lukshdrfs.luks.luks2.layout import METADATA_SIZES
from lukshdrfs.luks.model import STRIPES
from lukshdrfs.sectors import SECTOR

_MAX_KEY_SIZE = 512
"""Bytes; no cipher takes more."""


def with_damage_ignored(data: bytes) -> bytes:
    """Return a header's first bytes, put right where that is possible, as long as it says that it is."""
    mended = bytearray(data)
    if data.startswith(PRIMARY_MAGIC) and is_luks1(data):
        _mend_luks1(mended)
    else:
        for offset in (0, *METADATA_SIZES):
            copy = with_new_checksum(bytes(mended), offset)
            if copy is not None:
                mended[offset : offset + len(copy)] = copy
    try:
        extent = header_extent(bytes(mended))
    except HeaderError:
        return bytes(mended)
    return bytes(mended[:extent]).ljust(extent, b"\0")


def _mend_luks1(data: bytearray) -> None:
    if len(data) < HEADER_SIZE:
        return
    key_size = read_phdr(bytes(data)).key_size
    if not 0 < key_size <= _MAX_KEY_SIZE:
        return
    slots = read_slots(bytes(data))
    for slot in slots:
        if slot.active not in (ENABLED, DISABLED) or not _is_sound(slot):
            _forget(data, slot, key_size)
    taken = sorted(read_slots(bytes(data)), key=lambda slot: slot.offset_sectors)
    for before, after in pairwise(taken):
        if after.offset_sectors * SECTOR < before.offset_sectors * SECTOR + key_size * STRIPES:
            _forget(data, before if before.active == DISABLED else after, key_size)


def _is_sound(slot: Slot) -> bool:
    return slot.stripes == STRIPES and slot.offset_sectors * SECTOR >= HEADER_SIZE


def _forget(data: bytearray, slot: Slot, key_size: int) -> None:
    """Have a keyslot be unused, and where it usually is."""
    offset = (AREA_ALIGNMENT + slot.number * material_size(key_size)) // SECTOR
    SLOT.pack_into(data, PHDR.size + slot.number * SLOT.size, DISABLED, 0, b"", offset, STRIPES)
