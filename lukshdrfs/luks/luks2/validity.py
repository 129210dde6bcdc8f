"""
Which LUKS2 metadata is valid: what cryptsetup accepts is accepted, what it rejects is rejected.

Only what is of a type that it does not know, it calls damaged, and here it is kept: it may be newer than both programs.

Source: cryptsetup 2.6.1, lib/luks2/luks2_json_metadata.c (`LUKS2_hdr_validate`) and luks2_keyslot.c
(`LUKS2_keyslots_validate`). Validity is not yet usability: unknown ciphers, segment types, requirements and
flags are valid, and refused when a volume is to be opened (see unlock.py and volume.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT
from lukshdrfs.luks.luks2 import strict_json as sj
from lukshdrfs.luks.luks2.keyslot_validity import check_keyslot_contents
from lukshdrfs.luks.luks2.layout import BINARY_SIZE, MAX_KEYSLOTS_SIZE, METADATA_SIZES
from lukshdrfs.luks.luks2.requirements import ONLINE_REENCRYPT, is_reencrypt_candidate, requirements
from lukshdrfs.luks.luks2.strict_json import UINT64_MAX, Json
from lukshdrfs.sectors import SECTOR


@dataclass(frozen=True, slots=True)
class _Interval:
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def check_metadata(metadata: Json, json_size: int) -> None:
    """
    Raise HeaderError unless the metadata are valid for a JSON area of `json_size` bytes.

    The order of the checks is cryptsetup's: each relies on those before it.
    """
    _check_requirements(metadata)
    _check_tokens(metadata)
    _check_digests(metadata)
    _check_segments(metadata)
    _check_keyslots(metadata)
    _check_config(metadata, json_size)
    _check_areas(metadata)
    check_keyslot_contents(metadata)


def _check_requirements(metadata: Json) -> None:
    if sum(map(is_reencrypt_candidate, requirements(metadata))) > 1:
        raise HeaderError("LUKS2 requirements: more than one online reencryption")


def _check_references(owner: Json, key: str, where: str, targets: Json) -> None:
    for name in sj.get_strings(owner, key, where):
        sj.get(targets, name, dict, f"{where} refers to {key}, of which")


def _check_tokens(metadata: Json) -> None:
    tokens = list(sj.objects(metadata, "tokens"))
    keyslots = sj.get(metadata, "keyslots", dict, "metadata") if tokens else {}
    for name, token in tokens:
        sj.get_text(token, "type", f"token {name}")
        _check_references(token, "keyslots", f"token {name}", keyslots)


def _check_digests(metadata: Json) -> None:
    digests = list(sj.objects(metadata, "digests"))
    keyslots = sj.get(metadata, "keyslots", dict, "metadata")
    segments = sj.get(metadata, "segments", dict, "metadata")
    for name, digest in digests:
        sj.get_text(digest, "type", f"digest {name}")
        _check_references(digest, "keyslots", f"digest {name}", keyslots)
        _check_references(digest, "segments", f"digest {name}", segments)


def is_backup(segment: Json) -> bool:
    """Whether a segment only records what a reencryption started from or leads to."""
    return any(flag.startswith("backup-") for flag in segment.get("flags", ()))


def segment_size(segment: Json, where: str) -> int | None:
    """Return a segment's size in bytes, None if it is dynamic."""
    if sj.get_text(segment, "size", where) == "dynamic":
        return None
    return sj.get_uint64(segment, "size", where)


def _check_segments(metadata: Json) -> None:
    segments = sj.get(metadata, "segments", dict, "metadata")
    if not segments:
        raise HeaderError("LUKS2 segments: there is none")
    first_backup = _first_backup(metadata)
    regular = [_numbered_segment(segments, number) for number in range(first_backup)]
    _check_segment_intervals(regular)
    backups = [_numbered_segment(segments, number) for number in range(first_backup, len(segments))]
    if any(requirement in ONLINE_REENCRYPT for requirement in requirements(metadata)):
        _check_reencrypt_segments(regular, backups)


def _first_backup(metadata: Json) -> int:
    """Check each segment alone; return the number of the first backup segment, or how many there are."""
    first_backup: int | None = None
    count = 0
    bound = _bound_segments(metadata)
    for name, segment in sj.objects(metadata, "segments"):
        count += 1
        _check_segment(segment, name, bound)
        number = int(name[:20] or "0")
        if is_backup(segment):
            first_backup = number if first_backup is None else min(first_backup, number)
        elif first_backup is not None and number >= first_backup:
            raise HeaderError(f"LUKS2 segment {number} comes after backup segment {first_backup}")
    if first_backup == 0:
        raise HeaderError("LUKS2 segments: there are only backup segments")
    if first_backup is not None and first_backup >= count:
        raise HeaderError(f"LUKS2 segments: there is a gap before backup segment {first_backup}")
    return count if first_backup is None else first_backup


def _check_segment(segment: Json, name: str, bound: frozenset[str]) -> None:
    where = f"segment {name}"
    kind = sj.get_text(segment, "type", where)
    if sj.get_uint64(segment, "offset", where) % SECTOR:
        raise HeaderError(f"LUKS2 {where}: 'offset' is not a multiple of {SECTOR} bytes")
    size = segment_size(segment, where)
    if size is not None and (size == 0 or size % SECTOR):
        raise HeaderError(f"LUKS2 {where}: 'size' is {size}, expected a multiple of {SECTOR} bytes, not 0")
    sj.get_strings(segment, "flags", where, optional=True)
    if kind == "crypt":
        _check_crypt_segment(segment, name, size or 0, bound)


def _bound_segments(metadata: Json) -> frozenset[str]:
    """Return the names of all segments that a digest is bound to."""
    digests = sj.get(metadata, "digests", dict, "metadata").values()
    return frozenset(name for digest in digests for name in digest["segments"])


def _check_crypt_segment(segment: Json, name: str, size: int, bound: frozenset[str]) -> None:
    where = f"segment {name}"
    sj.get_text(segment, "encryption", where)
    if "integrity" in segment:
        integrity = sj.get(segment, "integrity", dict, where)
        for key in ("type", "journal_encryption", "journal_integrity"):
            sj.get_text(integrity, key, f"{where} integrity")
    sector_size = sj.get_uint32(segment, "sector_size", where)
    if sector_size == 0 or sector_size % SECTOR:
        raise HeaderError(f"LUKS2 {where}: 'sector_size' is {sector_size}, expected a multiple of {SECTOR}")
    sj.get_uint64(segment, "iv_tweak", where)
    if size % sector_size:
        raise HeaderError(f"LUKS2 {where}: 'size' is not a multiple of the sector size {sector_size}")
    if name not in bound:
        raise HeaderError(f"LUKS2 {where}: no digest is bound to it")


def _numbered_segment(segments: Json, number: int) -> Json:
    segment = segments.get(str(number))
    if not isinstance(segment, dict):
        raise HeaderError(f"LUKS2 segments: number {number} is missing")
    return segment


def _check_segment_intervals(regular: list[Json]) -> None:
    """Segments must not overlap on the payload, and only the last one may be dynamic."""
    intervals = []
    for number, segment in enumerate(regular):
        size = segment_size(segment, f"segment {number}")
        if size is None and number != len(regular) - 1:
            raise HeaderError(f"LUKS2 segment {number}: only the last segment may be dynamic")
        offset = sj.get_uint64(segment, "offset", f"segment {number}")
        # a dynamic segment reaches as far as offsets go
        intervals.append(_Interval(offset, UINT64_MAX - offset if size is None else size))
    _check_overlap(intervals, "segments")


def _check_overlap(intervals: list[_Interval], what: str) -> None:
    ordered = sorted(intervals, key=lambda interval: interval.offset)
    for before, after in pairwise(ordered):
        if max(before.end, after.end) > UINT64_MAX:  # one alone may: whether a payload has it is seen later
            raise HeaderError(f"LUKS2 {what}: one ends past 2^64 bytes")
        if after.offset < before.end or after.offset == before.offset:
            raise HeaderError(f"LUKS2 {what}: two overlap at byte {after.offset}")


def _check_reencrypt_segments(regular: list[Json], backups: list[Json]) -> None:
    final = _backup_with_flag(backups, "backup-final")
    previous = _backup_with_flag(backups, "backup-previous")
    if final is None or previous is None:
        raise HeaderError("LUKS2 reencryption: a backup segment is missing")
    for number, segment in enumerate(regular):
        moving = "in-reencryption" in segment.get("flags", ())
        if not _same_cipher(segment, final) and (moving or not _same_cipher(segment, previous)):
            raise HeaderError(f"LUKS2 segment {number} fits neither side of the reencryption")


def _backup_with_flag(backups: list[Json], flag: str) -> Json | None:
    return next((segment for segment in reversed(backups) if flag in segment.get("flags", ())), None)


def _same_cipher(left: Json, right: Json) -> bool:
    keys = ("type", "encryption", "sector_size") if left.get("type") == "crypt" else ("type",)
    return all(left.get(key) == right.get(key) for key in keys)


def _check_keyslots(metadata: Json) -> None:
    for name, keyslot in sj.objects(metadata, "keyslots"):
        sj.get_text(keyslot, "type", f"keyslot {name}")
        sj.get_uint32(keyslot, "key_size", f"keyslot {name}")


def _check_config(metadata: Json, json_size: int) -> None:
    config = sj.get(metadata, "config", dict, "metadata")
    if (named := sj.get_strtoull(config, "json_size", "config")) != json_size:
        raise HeaderError(f"LUKS2 config: 'json_size' is {named}, the binary header says {json_size} bytes")
    if json_size + BINARY_SIZE not in METADATA_SIZES:
        raise HeaderError(f"LUKS2 config: {json_size + BINARY_SIZE} bytes is not a legal metadata size")
    keyslots_size = sj.get_strtoull(config, "keyslots_size", "config")
    if keyslots_size % AREA_ALIGNMENT or keyslots_size > MAX_KEYSLOTS_SIZE:
        raise HeaderError(f"LUKS2 config: 'keyslots_size' {keyslots_size} is not a legal size")
    data_offset = min(
        sj.get_uint64(segment, "offset", f"segment {name}")
        for name, segment in sj.objects(metadata, "segments")
        if not is_backup(segment)
    )
    if data_offset and data_offset < 2 * (json_size + BINARY_SIZE) + keyslots_size:
        raise HeaderError(f"LUKS2 config: the keyslots area reaches past the data offset {data_offset}")
    sj.get_strings(config, "flags", "config", optional=True)
    compact = json.dumps(metadata, separators=(",", ":"), ensure_ascii=False)
    if len(compact.encode("utf-8", "replace")) > json_size:
        raise HeaderError("LUKS2 metadata do not fit the JSON area")


def _check_areas(metadata: Json) -> None:
    config = sj.get(metadata, "config", dict, "metadata")
    start = 2 * (sj.get_strtoull(config, "json_size", "config") + BINARY_SIZE)
    end = start + sj.get_strtoull(config, "keyslots_size", "config")
    intervals = []
    for name, keyslot in sj.objects(metadata, "keyslots"):
        where = f"keyslot {name} area"
        area = sj.get(keyslot, "area", dict, f"keyslot {name}")
        sj.get_text(area, "type", where)
        interval = _Interval(sj.get_uint64(area, "offset", where), sj.get_uint64(area, "size", where))
        if interval.size == 0 or interval.offset < start or interval.end > end:
            raise HeaderError(
                f"LUKS2 {where} is bytes {interval.offset} to {interval.end}; the keyslots area is {start} to {end}"
            )
        intervals.append(interval)
    _check_overlap(intervals, "keyslot areas")
