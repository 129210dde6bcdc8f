"""
A header of the other version for the same volume key, the same passphrases and the same data.

Nothing is decrypted for it: key material keeps its bytes and moves. What LUKS1 cannot say is refused by name.
Source: cryptsetup, lib/luks2/luks2_luks1_convert.c (`LUKS2_luks1_to_luks2`, `LUKS2_luks2_to_luks1`).
"""

from __future__ import annotations

import os

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.luks.free_memory import require_memory
from lukshdrfs.luks.hashes import is_same_hash
from lukshdrfs.luks.key_material import AREA_ALIGNMENT, material_size
from lukshdrfs.luks.luks1 import DIGEST_SIZE, DISABLED, ENABLED, MAGIC, PHDR, SECTOR, SLOT, SLOTS
from lukshdrfs.luks.luks1_format import header_size
from lukshdrfs.luks.luks2_binary import BinaryHeader
from lukshdrfs.luks.luks2_check import BINARY_SIZE, MAX_KEYSLOTS_SIZE
from lukshdrfs.luks.luks2_edit import check_editable, kdf_object
from lukshdrfs.luks.luks2_format import METADATA_SIZE, base64_text
from lukshdrfs.luks.model import STRIPES, Header, Keyslot
from lukshdrfs.luks.strict_json import Json
from lukshdrfs.sectors import round_down, round_up


def to_luks2(header: Header, room: int) -> bytes:
    """
    Return a LUKS2 header for a LUKS1 one.

    `room` is how many bytes it may take: up to the data if they lie behind it. What is left of it, up to that many,
    is set aside for keyslots. Raises UnsupportedFeature for a header that cannot be converted.
    """
    CipherSpec.parse(header.segments[0].encryption)
    size = material_size(PHDR.unpack_from(header.area)[6])
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
        keyslots[str(slot.id)] = _keyslot_object(slot, 2 * METADATA_SIZE + at, size)
    binary = BinaryHeader(METADATA_SIZE, 1, "", header.uuid, "")
    metadata = _metadata(header, keyslots, keyslots_size)
    return binary.written(metadata, secondary=False) + binary.written(metadata, secondary=True) + bytes(areas)


def _keyslot_object(slot: Keyslot, offset: int, size: int) -> Json:
    assert slot.kdf is not None
    assert slot.af is not None
    return {
        "type": "luks2",
        "key_size": slot.key_size,
        "af": {"type": "luks1", "stripes": STRIPES, "hash": slot.af.hash},
        "area": {
            "type": "raw",
            "offset": str(offset),
            "size": str(size),
            "encryption": slot.area.encryption,
            "key_size": slot.area.key_size,
        },
        "kdf": kdf_object(slot.kdf),
    }


def _metadata(header: Header, keyslots: Json, keyslots_size: int) -> Json:
    segment, digest = header.segments[0], header.digests[0]
    return {
        "keyslots": keyslots,
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": str(segment.offset),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": segment.encryption,
                "sector_size": SECTOR,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": list(keyslots),
                "segments": ["0"],
                "hash": digest.hash,
                "iterations": digest.iterations,
                "salt": base64_text(digest.salt),
                "digest": base64_text(digest.digest),
            }
        },
        "config": {
            "json_size": str(METADATA_SIZE - BINARY_SIZE),
            "keyslots_size": str(keyslots_size),
        },
    }


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
