"""
Damage of a LUKS1 header that can be undone, because it is known what stood there.

What is repaired, and how, is what `cryptsetup repair` does (lib/luks1/keymanage.c, `_keyslot_repair`): places and
stripes of keyslots that are not in use, a partition table's signature in the middle of keyslot 6, an IV after `ecb`,
a hash in capital letters. A keyslot that is in use is never touched; nor is one whose state alone is unknown, for
its key may still be there.
"""

from __future__ import annotations

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.edit import HeaderEdit, Write
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT, material_size
from lukshdrfs.luks.luks1.phdr import (
    DISABLED,
    ENABLED,
    HEADER_SIZE,
    PHDR,
    SLOT,
    Slot,
    parse_luks1,
    read_phdr,
    read_slots,
)
from lukshdrfs.luks.model import STRIPES
from lukshdrfs.sectors import SECTOR

_KEY_SIZES = (16, 32, 64)
_MODE_OFFSET, _MODE_SIZE = 40, 32
_HASH_OFFSET, _HASH_SIZE = 72, 32
_SIGNATURE_OFFSET, _SIGNATURE = 0x1FE, b"\x55\xaa"


def repair_luks1(data: bytes, size: int) -> tuple[tuple[str, ...], HeaderEdit]:
    """
    Return what is wrong with a header, in a line each, and the edit that mends it; nothing and no steps if it is sound.

    `data` are its first bytes, `size` is that of the file or device. Raises HeaderError if it is beyond repair.
    """
    if len(data) < HEADER_SIZE:
        raise HeaderError(f"the LUKS1 header is cut off: it needs {HEADER_SIZE} bytes, there are {len(data)}")
    key_size, slots = read_phdr(data).key_size, read_slots(data)
    unusual = _unusual(key_size, slots)
    if unusual:
        try:
            parse_luks1(data, size)
        except HeaderError:
            raise HeaderError(f"{unusual}; this header is not repaired automatically") from None
        return (), HeaderEdit(())
    found: list[str] = []
    repaired = bytearray(data)
    _repair_mode(repaired, found)
    found += misspelt_hash(data)
    repaired[_HASH_OFFSET : _HASH_OFFSET + _HASH_SIZE] = repaired[_HASH_OFFSET : _HASH_OFFSET + _HASH_SIZE].lower()
    for slot in slots:
        if slot.active != ENABLED:
            _repair_slot(repaired, slot, key_size, data, found)
    parse_luks1(bytes(repaired), size)  # what cannot be mended is not half mended
    if not found:
        return (), HeaderEdit(())
    # both sectors of the phdr at once: none of what changes belongs to a keyslot that is in use
    return tuple(found), HeaderEdit(((Write(0, bytes(repaired[:HEADER_SIZE])),),))


def _unusual(key_size: int, slots: list[Slot]) -> str:
    """Return why it is not known what the header was, empty if it is."""
    if key_size not in _KEY_SIZES:
        return f"a key of {key_size} bytes is not usual"
    if slots[0].offset_sectors < AREA_ALIGNMENT // SECTOR:
        return "the keyslots are not where they usually are"
    return ""


def _repair_mode(data: bytearray, found: list[str]) -> None:
    mode = bytes(data[_MODE_OFFSET : _MODE_OFFSET + _MODE_SIZE])
    if mode.startswith(b"ecb-"):
        found.append(f"cipher mode {mode.partition(bytes(1))[0].decode('ascii', 'replace')!r}: ecb takes no IV")
        data[_MODE_OFFSET : _MODE_OFFSET + _MODE_SIZE] = b"ecb".ljust(_MODE_SIZE, b"\0")


def misspelt_hash(data: bytes) -> tuple[str, ...]:
    """Return that a header's hash has capital letters, if it has; it opens all the same."""
    name = data[_HASH_OFFSET : _HASH_OFFSET + _HASH_SIZE].partition(b"\0")[0]
    return () if name == name.lower() else (f"hash {name.decode('ascii', 'replace')!r} is not in small letters",)


def _repair_slot(repaired: bytearray, slot: Slot, key_size: int, data: bytes, found: list[str]) -> None:
    expected = (AREA_ALIGNMENT + slot.number * material_size(key_size)) // SECTOR
    problems = []
    if slot.offset_sectors != expected:
        problems.append(f"its area is at sector {slot.offset_sectors}, expected {expected}")
    if slot.stripes != STRIPES:
        problems.append(f"{slot.stripes} stripes, expected {STRIPES}")
    if slot.number == 6 and data[_SIGNATURE_OFFSET : _SIGNATURE_OFFSET + 2] == _SIGNATURE:
        problems.append("a partition table's signature lies in it")
    if not problems:
        return
    found.append(f"keyslot {slot.number} (not in use): {'; '.join(problems)}")
    SLOT.pack_into(repaired, PHDR.size + slot.number * SLOT.size, DISABLED, 0, b"", expected, STRIPES)
