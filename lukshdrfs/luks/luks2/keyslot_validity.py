"""Which keyslots of LUKS2 metadata are valid, by their type."""

from __future__ import annotations

from collections import Counter

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.luks2 import strict_json as sj
from lukshdrfs.luks.luks2.requirements import ONLINE_REENCRYPT, is_reencrypt_candidate, requirements
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.sectors import SECTOR


def check_keyslot_contents(metadata: Json) -> None:
    reencrypt_slots = 0
    digests = sj.get(metadata, "digests", dict, "metadata").values()
    bindings = Counter(name for digest in digests for name in set(digest["keyslots"]))
    for name, keyslot in sj.objects(metadata, "keyslots"):
        if keyslot["type"] == "luks2":
            _check_luks2_keyslot(keyslot, f"keyslot {name}")
            if (bound := bindings[str(int(name[:20] or "0"))]) != 1:
                raise HeaderError(f"LUKS2 keyslot {name} is bound to {bound} digests, expected 1")
        elif keyslot["type"] == "reencrypt":
            _check_reencrypt_keyslot(keyslot, f"keyslot {name}")
            reencrypt_slots += 1
    needed = requirements(metadata)
    if reencrypt_slots == 0 and any(requirement in ONLINE_REENCRYPT for requirement in needed):
        raise HeaderError("LUKS2 reencryption: its keyslot is missing")
    if reencrypt_slots and not any(map(is_reencrypt_candidate, needed)):
        raise HeaderError("LUKS2 reencryption: there is a keyslot for it, but no requirement")
    if reencrypt_slots > 1:
        raise HeaderError("LUKS2 reencryption: more than one keyslot for it")


def _check_luks2_keyslot(keyslot: Json, where: str) -> None:
    kdf = sj.get(keyslot, "kdf", dict, where)
    kind = sj.get_text(kdf, "type", f"{where} kdf")
    # other members are left over from another KDF; cryptsetup drops them in memory (`luks2_keyslot_repair`)
    if kind == "pbkdf2":
        sj.get_text(kdf, "hash", f"{where} kdf")
        sj.get(kdf, "iterations", int, f"{where} kdf")
        sj.get_text(kdf, "salt", f"{where} kdf")
    elif kind in ("argon2i", "argon2id"):
        for key in ("time", "memory", "cpus"):
            sj.get(kdf, key, int, f"{where} kdf")
        sj.get_text(kdf, "salt", f"{where} kdf")
    # of other types, which cryptsetup takes for damage, nothing can be said; the keyslot is not opened
    af = sj.get(keyslot, "af", dict, where)
    if sj.get_text(af, "type", f"{where} af") == "luks1":
        sj.get_text(af, "hash", f"{where} af")
        sj.get(af, "stripes", int, f"{where} af")
    area = sj.get(keyslot, "area", dict, where)
    if sj.get_text(area, "type", f"{where} area") == "raw":
        sj.get_text(area, "encryption", f"{where} area")
        sj.get(area, "key_size", int, f"{where} area")


def _check_reencrypt_keyslot(keyslot: Json, where: str) -> None:
    if sj.get_uint32(keyslot, "key_size", where) != 1:
        raise HeaderError(f"LUKS2 {where}: 'key_size' is not 1")
    if sj.get_text(keyslot, "mode", where) not in ("reencrypt", "encrypt", "decrypt"):
        raise HeaderError(f"LUKS2 {where}: unknown 'mode' {keyslot['mode']!r}")
    if sj.get_text(keyslot, "direction", where) not in ("forward", "backward"):
        raise HeaderError(f"LUKS2 {where}: unknown 'direction' {keyslot['direction']!r}")
    area = sj.get(keyslot, "area", dict, where)
    if area["type"] in ("checksum", "datashift-checksum"):
        sj.get_text(area, "hash", f"{where} area")
        size = sj.get_uint32(area, "sector_size", f"{where} area")
        if size < SECTOR or size & (size - 1):
            raise HeaderError(f"LUKS2 {where} area: 'sector_size' {size} is not legal")
    elif area["type"] in ("datashift", "datashift-journal"):
        shift = sj.get_strtoull(area, "shift_size", f"{where} area")
        if shift == 0 or shift % SECTOR:
            raise HeaderError(f"LUKS2 {where} area: 'shift_size' {shift} is not legal")
