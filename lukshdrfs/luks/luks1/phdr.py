"""
The LUKS1 header.

Source: LUKS1 specification 1.2.3, figure 1 (`phdr`) and figure 2 (key slot); cryptsetup,
lib/luks1/keymanage.c (`_check_and_convert_hdr`, `LUKS_check_keyslots`, `LUKS_check_device_size`).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import pairwise

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.capabilities import missing_for_keyslot, missing_hash
from lukshdrfs.luks.model import STRIPES, AfSplitter, Digest, Header, Kdf, Keyslot, KeyslotArea, Segment, field_text
from lukshdrfs.sectors import SECTOR

PHDR = struct.Struct(">6sH32s32s32sII20s32sI40s")
"""magic, version, cipher name, cipher mode, hash, payload offset, key bytes, mk digest, salt, iterations, uuid."""

SLOT = struct.Struct(">II32sII")
"""active, iterations, salt, key material offset, stripes."""

MAGIC = b"LUKS\xba\xbe"
SLOTS = 8
HEADER_SIZE = 1024
"""Bytes that cryptsetup reads and writes as the header (592 and padding)."""

ENABLED = 0x00AC71F3
DISABLED = 0x0000DEAD

DIGEST_SIZE = 20
"""Bytes of the volume key's digest."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A keyslot's entry in the phdr."""

    number: int
    active: int
    iterations: int
    salt: bytes
    offset_sectors: int
    stripes: int


@dataclass(frozen=True, slots=True)
class Phdr:
    """The fields of the phdr before its keyslots, as they are on the storage."""

    magic: bytes
    version: int
    cipher: bytes
    mode: bytes
    hash: bytes
    payload_sectors: int
    key_size: int
    """Bytes of the volume key."""
    digest: bytes
    salt: bytes
    iterations: int
    uuid: bytes


def read_phdr(data: bytes) -> Phdr:
    """Return the fields of the header that starts with `data`, which has HEADER_SIZE bytes at least."""
    return Phdr(*PHDR.unpack_from(data))


def read_slots(data: bytes) -> list[Slot]:
    """Return the eight entries of the header that starts with `data`."""
    return [Slot(n, *SLOT.unpack_from(data, PHDR.size + n * SLOT.size)) for n in range(SLOTS)]


def _check_slots(slots: list[Slot], material_sectors: int, payload_sectors: int) -> None:
    """Key material lies behind the header, before the payload (if that is in the same file), without overlap."""
    for slot in slots:
        if slot.stripes != STRIPES:
            raise HeaderError(f"LUKS1 keyslot {slot.number} has {slot.stripes} stripes, expected {STRIPES}")
        if slot.offset_sectors * SECTOR < HEADER_SIZE:
            raise HeaderError(f"LUKS1 keyslot {slot.number} lies in the header")
        if payload_sectors and slot.offset_sectors + material_sectors > payload_sectors:
            raise HeaderError(f"LUKS1 keyslot {slot.number} reaches into the data")
    for before, after in pairwise(sorted(slots, key=lambda slot: slot.offset_sectors)):
        if after.offset_sectors < before.offset_sectors + material_sectors:
            raise HeaderError(f"LUKS1 keyslots {before.number} and {after.number} overlap")


def _check_hash(name: str) -> None:
    """Raise HeaderError for what can be no hash's name; one that is not known here is another matter."""
    if not re.fullmatch("[!-~]+", name):
        raise HeaderError(f"LUKS1 header: {name!r} is no name of a hash")


def parse_luks1(data: bytes, size: int, *, unused_areas_missing: bool = False) -> Header:
    """
    Parse a LUKS1 header from its first bytes; `size` is that of the file or device it is from.

    With `unused_areas_missing`, it may be cut off behind the last keyslot that is in use: what is missing holds no key.

    Raises HeaderError if it is not valid, or does not fit `size`.
    """
    if len(data) < HEADER_SIZE:
        raise HeaderError(f"the LUKS1 header is cut off: it needs {HEADER_SIZE} bytes, there are {len(data)}")
    phdr, slots = read_phdr(data), read_slots(data)
    key_size, hash_name = phdr.key_size, field_text(phdr.hash)
    _check_hash(hash_name)
    material_sectors = -(-key_size * STRIPES // SECTOR)
    _check_slots(slots, material_sectors, phdr.payload_sectors)
    if key_size == 0:
        raise HeaderError("LUKS1 header: the key has no bytes")
    used = [slot for slot in slots if slot.active != DISABLED]
    extent = _extent(slots, key_size)
    if max(_extent(used if unused_areas_missing else slots, key_size), HEADER_SIZE) > size:
        raise HeaderError(f"the LUKS1 header is cut off: it needs {extent} bytes, there are {size}")
    encryption = f"{field_text(phdr.cipher)}-{field_text(phdr.mode)}"
    keyslots = tuple(_keyslot(slot, hash_name, encryption, key_size) for slot in used)
    return Header(
        version=1,
        uuid=field_text(phdr.uuid),
        keyslots=keyslots,
        digests=(
            Digest(
                0,
                "pbkdf2",
                frozenset(slot.id for slot in keyslots),
                frozenset({0}),
                hash_name,
                phdr.iterations,
                phdr.salt,
                phdr.digest,
                unsupported=missing_hash(hash_name),
            ),
        ),
        segments=(Segment(0, "crypt", phdr.payload_sectors * SECTOR, None, 0, encryption),),
        area=data[:extent],
        warnings=(f"unused keyslots are cut off: {size} of {extent} bytes are there",) if extent > size else (),
    )


def _keyslot(slot: Slot, hash_name: str, encryption: str, key_size: int) -> Keyslot:
    size = -(-key_size * STRIPES // SECTOR) * SECTOR
    area = KeyslotArea(slot.offset_sectors * SECTOR, size, encryption, key_size)
    kdf, af = Kdf("pbkdf2", slot.salt, slot.iterations, hash=hash_name), AfSplitter(hash_name, STRIPES)
    return Keyslot(
        id=slot.number,
        type="luks2",
        key_size=key_size,
        area=area,
        kdf=kdf,
        af=af,
        problem="" if slot.active == ENABLED else f"its state {slot.active:#x} is unknown",
        unsupported=missing_for_keyslot(kdf, af, area),
    )


def _extent(slots: list[Slot], key_size: int) -> int:
    """Return the byte behind the key material of the last of some slots, 0 for none."""
    material_sectors = -(-key_size * STRIPES // SECTOR)
    return max(((slot.offset_sectors + material_sectors) * SECTOR for slot in slots), default=0)


def extent_luks1(data: bytes) -> int:
    """Return how many bytes the header with these first bytes takes, keyslot areas included."""
    if len(data) < HEADER_SIZE:
        return HEADER_SIZE
    return _extent(read_slots(data), read_phdr(data).key_size)
