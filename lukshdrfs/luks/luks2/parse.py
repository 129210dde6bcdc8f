"""Valid LUKS2 metadata as a model. A keyslot or digest that is damaged in itself says so and stops no other."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from lukshdrfs.errors import HeaderError, UnsupportedFeature
from lukshdrfs.luks.capabilities import missing_for_keyslot, missing_hash
from lukshdrfs.luks.luks2 import strict_json as sj
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.luks2.validity import is_backup, segment_size
from lukshdrfs.luks.model import SALT_SIZE, STRIPES, AfSplitter, Digest, Kdf, Keyslot, KeyslotArea, Segment, Token

_KDFS = ("pbkdf2", "argon2i", "argon2id")
_MIN_DIGEST_SIZE = 20
_MAX_DIGEST_SIZE = 64


def parse_keyslots(metadata: Json) -> tuple[Keyslot, ...]:
    """Return the keyslots by number."""
    slots = [_parse_keyslot(int(name[:20] or "0"), slot) for name, slot in sj.objects(metadata, "keyslots")]
    return tuple(sorted(slots, key=lambda slot: slot.id))


def _parse_keyslot(number: int, slot: Json) -> Keyslot:
    where = f"keyslot {number}"
    area = slot["area"]
    keyslot_area = KeyslotArea(
        offset=sj.get_uint64(area, "offset", where),
        size=sj.get_uint64(area, "size", where),
        encryption=str(area.get("encryption", "")),
        key_size=area["key_size"] if slot["type"] == "luks2" and area["type"] == "raw" else 0,
    )
    priority = slot.get("priority", 1)
    kdf: Kdf | None = None
    af: AfSplitter | None = None
    problem = ""
    unsupported = "" if slot["type"] == "luks2" else f"its type {slot['type']!r} holds no volume key"
    if not unsupported:
        try:
            kdf = _parse_kdf(slot["kdf"], where)
            af = _parse_af(slot["af"], where)
            _check_area_type(area)
            _check_area_holds_key(keyslot_area, slot["key_size"], where)
            unsupported = missing_for_keyslot(kdf, af, keyslot_area)
        except UnsupportedFeature as error:
            unsupported = str(error)
        except HeaderError as error:
            problem = str(error)
    return Keyslot(
        id=number,
        type=slot["type"],
        key_size=slot["key_size"],
        area=keyslot_area,
        priority=priority if isinstance(priority, int) else 0,
        kdf=kdf,
        af=af,
        problem=problem,
        unsupported=unsupported,
    )


def _parse_kdf(kdf: Json, where: str) -> Kdf:
    if kdf["type"] not in _KDFS:
        raise UnsupportedFeature(f"its KDF {kdf['type']!r} is not supported (known: {', '.join(_KDFS)})")
    salt = _base64(kdf, "salt", where)
    if len(salt) != SALT_SIZE:
        raise HeaderError(f"LUKS2 {where} kdf: 'salt' has {len(salt)} bytes, expected {SALT_SIZE}")
    if kdf["type"] == "pbkdf2":
        return Kdf("pbkdf2", salt, sj.get_uint32(kdf, "iterations", where), hash=kdf["hash"])
    return Kdf(
        kdf["type"],
        salt,
        sj.get_uint32(kdf, "time", where),
        memory_kib=sj.get_uint32(kdf, "memory", where),
        lanes=sj.get_uint32(kdf, "cpus", where),
    )


def _parse_af(af: Json, where: str) -> AfSplitter:
    if af["type"] != "luks1":
        raise UnsupportedFeature(f"its AF splitter {af['type']!r} is not supported (known: luks1)")
    if af["stripes"] != STRIPES:
        raise HeaderError(f"LUKS2 {where} af: 'stripes' is {af['stripes']}, expected {STRIPES}")
    return AfSplitter(af["hash"], STRIPES)


def _check_area_type(area: Json) -> None:
    if area["type"] != "raw":
        raise UnsupportedFeature(f"its area's type {area['type']!r} is not supported (known: raw)")


def _check_area_holds_key(area: KeyslotArea, key_size: int, where: str) -> None:
    needed = key_size * STRIPES
    if key_size == 0 or needed > area.size:
        raise HeaderError(f"LUKS2 {where} area has {area.size} bytes, its key of {key_size} needs {needed}")


def _base64(parent: Json, key: str, where: str) -> bytes:
    try:
        return base64.b64decode(sj.get_text(parent, key, where), validate=True)
    except (binascii.Error, ValueError):
        raise HeaderError(f"LUKS2 {where}: {key!r} is not base64") from None


def _references(names: list[str]) -> tuple[int, ...]:
    return tuple(int(name[:20]) for name in names if name)


def parse_digests(metadata: Json) -> tuple[Digest, ...]:
    """Return the digests by number."""
    digests = [_parse_digest(int(name[:20] or "0"), value) for name, value in sj.objects(metadata, "digests")]
    return tuple(sorted(digests, key=lambda digest: digest.id))


def _parse_digest(number: int, value: Json) -> Digest:
    where = f"digest {number}"
    details: dict[str, Any] = {}
    problem = unsupported = ""
    try:
        details = _digest_details(value, where)
        unsupported = missing_hash(details["hash"])
    except UnsupportedFeature as error:
        unsupported = str(error)
    except HeaderError as error:
        problem = str(error)
    return Digest(
        id=number,
        type=value["type"],
        keyslots=frozenset(_references(value["keyslots"])),
        segments=frozenset(_references(value["segments"])),
        problem=problem,
        unsupported=unsupported,
        **details,
    )


def _digest_details(value: Json, where: str) -> dict[str, Any]:
    if value["type"] != "pbkdf2":
        raise UnsupportedFeature(f"its type {value['type']!r} is not supported (known: pbkdf2)")
    salt, digest = _base64(value, "salt", where), _base64(value, "digest", where)
    if len(salt) != SALT_SIZE:
        raise HeaderError(f"LUKS2 {where}: 'salt' has {len(salt)} bytes, expected {SALT_SIZE}")
    if not _MIN_DIGEST_SIZE <= len(digest) <= _MAX_DIGEST_SIZE:
        raise HeaderError(f"LUKS2 {where}: 'digest' has {len(digest)} bytes")
    return {
        "hash": sj.get_text(value, "hash", where),
        "iterations": sj.get_uint32(value, "iterations", where),
        "salt": salt,
        "digest": digest,
    }


def parse_segments(metadata: Json) -> tuple[Segment, ...]:
    """Return the segments by number, backups of a reencryption left out."""
    return tuple(segment for segment, backup in _all_segments(metadata) if not backup)


def parse_backup_segments(metadata: Json) -> tuple[Segment, ...]:
    """Return what a reencryption records of the volume before and after it, by number."""
    return tuple(segment for segment, backup in _all_segments(metadata) if backup)


def _all_segments(metadata: Json) -> list[tuple[Segment, bool]]:
    """Return all segments by number, and whether each is a backup."""
    segments = [
        (_parse_segment(int(name[:20] or "0"), value), is_backup(value))
        for name, value in sj.objects(metadata, "segments")
    ]
    return sorted(segments, key=lambda pair: pair[0].id)


def _parse_segment(number: int, value: Json) -> Segment:
    where = f"segment {number}"
    crypt = value["type"] == "crypt"
    return Segment(
        id=number,
        type=value["type"],
        offset=sj.get_uint64(value, "offset", where),
        size=segment_size(value, where),
        iv_tweak=sj.get_uint64(value, "iv_tweak", where) if crypt else 0,
        encryption=value["encryption"] if crypt else "",
        sector_size=value["sector_size"] if crypt else 512,
        flags=tuple(value.get("flags", ())),
        integrity=value["integrity"]["type"] if crypt and "integrity" in value else "",
    )


def parse_tokens(metadata: Json) -> tuple[Token, ...]:
    """Return the tokens by number."""
    tokens = [
        Token(int(name[:20] or "0"), value["type"], _references(value["keyslots"]), value)
        for name, value in sj.objects(metadata, "tokens")
    ]
    return tuple(sorted(tokens, key=lambda token: token.id))
