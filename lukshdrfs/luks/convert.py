"""
A header of the other version for the same volume key, the same passphrases and the same data.

Nothing is decrypted for it: key material keeps its bytes and moves. What LUKS1 cannot say is refused by name.
Source: cryptsetup, lib/luks2/luks2_luks1_convert.c (`LUKS2_luks1_to_luks2`, `LUKS2_luks2_to_luks1`).
"""

from __future__ import annotations

import os

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.luks.keys.free_memory import require_memory
from lukshdrfs.luks.keys.hashes import is_same_hash
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT, NewKeyslot, material_size
from lukshdrfs.luks.luks1.format import header_size
from lukshdrfs.luks.luks1.phdr import DIGEST_SIZE, DISABLED, ENABLED, MAGIC, PHDR, SLOT, SLOTS, read_phdr
from lukshdrfs.luks.luks2.binary import BinaryHeader
from lukshdrfs.luks.luks2.edit import check_editable
from lukshdrfs.luks.luks2.layout import MAX_KEYSLOTS_SIZE, METADATA_SIZE
from lukshdrfs.luks.luks2.objects import digest_object, keyslot_object, metadata_of, segment_object
from lukshdrfs.luks.model import STRIPES, Header, Keyslot
from lukshdrfs.sectors import SECTOR, round_down, round_up


def to_luks2(header: Header, room: int) -> bytes:
    """
    Return a LUKS2 header for a LUKS1 one.

    `room` is how many bytes it may take: up to the data if they lie behind it. What is left of it, up to that many,
    is set aside for keyslots. Raises UnsupportedFeature for a header that cannot be converted.
    """
    CipherSpec.parse(header.segments[0].encryption)
    size = material_size(read_phdr(header.area).key_size)
    keyslots_size = min(round_down(room - 2 * METADATA_SIZE, AREA_ALIGNMENT), MAX_KEYSLOTS_SIZE)
    if keyslots_size < SLOTS * size:
        raise UnsupportedFeature(
            f"a LUKS2 header for it needs {2 * METADATA_SIZE + SLOTS * size} bytes, there is room for {room}"
        )
    require_memory("the converted header", 4 * keyslots_size // 1024)
    areas = bytearray(os.urandom(keyslots_size))
    keyslots = {}
    for slot in header.keyslots:
        if slot.problem:
            raise UnsupportedFeature(f"keyslot {slot.id}: {slot.problem}; it cannot be converted")
        at = slot.id * size
        material = header.area[slot.area.offset : slot.area.offset + slot.key_size * STRIPES]
        areas[at : at + len(material)] = material
        keyslots[str(slot.id)] = keyslot_object(_as_new(slot), slot.key_size, 2 * METADATA_SIZE + at, size)
    binary = BinaryHeader(METADATA_SIZE, 1, "", header.uuid, "")
    segment = header.segments[0]
    metadata = metadata_of(
        segment_object(segment.encryption, SECTOR, segment.offset, None),
        digest_object(header.digests[0]),
        keyslots,
        metadata_size=METADATA_SIZE,
        keyslots_size=keyslots_size,
    )
    return binary.written(metadata, secondary=False) + binary.written(metadata, secondary=True) + bytes(areas)


def _as_new(slot: Keyslot) -> NewKeyslot:
    assert slot.kdf is not None
    assert slot.af is not None
    return NewKeyslot(slot.kdf, CipherSpec.parse(slot.area.encryption), slot.area.key_size, slot.af.hash)


def to_luks1(header: Header) -> bytes:
    """Return a LUKS1 header for a LUKS2 one. Raises UnsupportedFeature that names what LUKS1 does not have."""
    check_editable(header)
    key_size = _check_fits_luks1(header)
    segment, digest = header.segments[0], header.digests[0]
    area_size = material_size(key_size)
    size = header_size(key_size)
    if segment.offset and segment.offset < size:
        size = round_up(AREA_ALIGNMENT + SLOTS * area_size, AREA_ALIGNMENT)
    areas = bytearray(os.urandom(SLOTS * area_size))
    entries = []
    for number in range(SLOTS):
        offset_sectors = (AREA_ALIGNMENT + number * area_size) // SECTOR
        slot = header.keyslot(number)
        if slot is None:
            entries.append(SLOT.pack(DISABLED, 0, b"", offset_sectors, STRIPES))
            continue
        assert slot.kdf is not None
        material = header.area[slot.area.offset : slot.area.offset + key_size * STRIPES]
        areas[number * area_size : number * area_size + len(material)] = material
        entries.append(SLOT.pack(ENABLED, slot.kdf.iterations, slot.kdf.salt, offset_sectors, STRIPES))
    cipher, _, mode = segment.encryption.partition("-")
    phdr = PHDR.pack(
        MAGIC,
        1,
        cipher.encode(),
        mode.encode(),
        digest.hash.encode(),
        segment.offset // SECTOR,
        key_size,
        digest.digest[:DIGEST_SIZE],
        digest.salt,
        digest.iterations,
        header.uuid.encode("ascii"),
    )
    return ((phdr + b"".join(entries)).ljust(AREA_ALIGNMENT, b"\0") + bytes(areas)).ljust(size, b"\0")


def _check_fits_luks1(header: Header) -> int:
    """Return the key's size in bytes, after checking that LUKS1 has words for everything."""
    segment = header.segments[0]
    reasons = {
        "it has more than one segment": len(header.segments) > 1,
        "its segment is not encrypted": segment.type != "crypt",
        f"its sectors have {segment.sector_size} bytes, not {SECTOR}": segment.sector_size != SECTOR,
        "its segment has a fixed size": segment.size is not None,
        "its segment's IVs are shifted": bool(segment.iv_tweak),
        "its segment has flags or integrity protection": bool(segment.flags or segment.integrity),
        "its data begin past 2 TiB": segment.offset // SECTOR >= 1 << 32,
        f"it has {len(header.tokens)} token(s)": bool(header.tokens),
        "it has more than one digest": len(header.digests) != 1,
        "it has no keyslot": not header.keyslots,
        "it has a label or a subsystem": bool(header.label or header.subsystem),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise UnsupportedFeature(f"LUKS1 cannot say what the header says: {reason}")
    digest = header.digests[0]
    if digest.problem or len(digest.digest) < DIGEST_SIZE:
        reason = digest.problem or digest.unsupported
        raise UnsupportedFeature(f"LUKS1 cannot say what the header says: its digest is not one ({reason})")
    for slot in header.keyslots:
        problem = _problem_for_luks1(slot, digest.hash, segment.encryption)
        if problem:
            raise UnsupportedFeature(f"LUKS1 cannot say what the header says: keyslot {slot.id} {problem}")
    return header.keyslots[0].key_size


def _problem_for_luks1(slot: Keyslot, hash_name: str, encryption: str) -> str:
    if slot.problem or slot.kdf is None or slot.af is None:
        return f"cannot be used: {slot.problem or slot.unsupported}"
    if slot.id >= SLOTS:
        return f"is beyond the {SLOTS} that there are; move its key to a lower one"
    if slot.kdf.type != "pbkdf2":
        return f"has the KDF {slot.kdf.type}; change its key with --pbkdf pbkdf2 --hash {hash_name} first"
    if not (is_same_hash(slot.kdf.hash, hash_name) and is_same_hash(slot.af.hash, hash_name)):
        return f"does not have the digest's hash {hash_name}; change its key with --hash {hash_name} first"
    if slot.area.encryption != encryption or slot.area.key_size != slot.key_size:
        return f"is not encrypted with the data's cipher {encryption}"
    return ""
