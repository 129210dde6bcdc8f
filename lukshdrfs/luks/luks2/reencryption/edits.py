"""
How the metadata change with each step of a reencryption, and at its beginning and end.

Metadata go in and come out as JSON; what they have beyond what is known here stays in them. Nothing is written here.
Sources: as in `state`; LUKS2 On-Disk Format 1.1.4, section 4.9.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.luks2.layout import BINARY_SIZE
from lukshdrfs.luks.luks2.reencryption.state import HOT, Part, Protection, ReencryptionState, Side
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.model import Digest, Segment
from lukshdrfs.sectors import SECTOR, round_up

_AREA_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class Range:
    """A part of the keyslot areas."""

    offset: int
    """Bytes of the header."""
    size: int


def step_parts(state: ReencryptionState, size: int, start: int, end: int, side: Side) -> tuple[Part, ...]:
    """
    Return the parts with the plaintext from `start` to `end` on another side: hot, when a step begins, new at its end.

    `size` is the plaintext's, in bytes.
    """
    cut: list[tuple[Side, int, int]] = [(side, start, end)]
    for part in state.parts:
        stop = size if part.size is None else part.start + part.size
        if part.side is not Side.HOT:
            cut += [(part.side, part.start, min(stop, start)), (part.side, max(part.start, end), stop)]
    parts = _merged(sorted((piece for piece in cut if piece[1] < piece[2]), key=lambda piece: piece[1]))
    last = parts[-1]
    if last.side is not Side.HOT and _ends_with_payload(state, last.side):
        parts[-1] = Part(last.side, last.start, None)
    return tuple(parts)


def _ends_with_payload(state: ReencryptionState, side: Side) -> bool:
    """Whether the last part, if it is of that side, goes as far as the payload does."""
    last = state.parts[-1]
    if last.size is not None and last.side is not Side.HOT:
        return False  # somebody has fixed the size for this conversion
    return state.previous.size is None and (side is Side.OLD or not state.protection.shift)


def _merged(pieces: list[tuple[Side, int, int]]) -> list[Part]:
    parts: list[Part] = []
    for side, first, last in pieces:
        if parts and parts[-1].side is side:
            parts[-1] = Part(side, parts[-1].start, last - parts[-1].start)
        else:
            parts.append(Part(side, first, last - first))
    return parts


def with_parts(metadata: Json, state: ReencryptionState, parts: Iterable[Part]) -> Json:
    """Return the metadata with the active segments that these parts are, and the digests' bindings to them."""
    changed = copy.deepcopy(metadata)
    backups = _backups_in(metadata)
    parts = tuple(parts)
    active = [_segment(backups, state, part) for part in parts]
    behind = [backups[segment.flags] for segment in _backups(state)]
    changed["segments"] = {str(number): segment for number, segment in enumerate([*active, *behind])}
    for digest, bound in _bindings(state, parts).items():
        changed["digests"][str(digest)]["segments"] = [str(number) for number in bound]
    return changed


def _bindings(state: ReencryptionState, parts: tuple[Part, ...]) -> dict[int, list[int]]:
    """Return the numbers of the segments that each volume key's digest is bound to."""
    bound: dict[int, list[int]] = {digest.id: [] for digest in (state.old_digest, state.new_digest) if digest}
    for number, part in enumerate(parts):
        for digest in _digests(state, part):
            bound[digest].append(number)
    for number, segment in enumerate(_backups(state), len(parts)):
        of_side = state.digest_of(Side.NEW if segment is state.final else Side.OLD)
        if of_side is not None:
            bound[of_side.id].append(number)
    return bound


def _backups_in(metadata: Json) -> dict[tuple[str, ...], Json]:
    """Return the backup segments by their flags: their numbers change with each step."""
    return {tuple(segment["flags"]): segment for segment in metadata["segments"].values() if "flags" in segment}


def _backups(state: ReencryptionState) -> list[Segment]:
    return [segment for segment in (state.previous, state.final, state.moved) if segment is not None]


def _digests(state: ReencryptionState, part: Part) -> list[int]:
    """Return the digests that a part's segment is bound to; the hot one of a reencryption to both."""
    kind = state.segment_of(part.side).type
    if kind != "crypt":
        return []
    digests = [state.digest_of(part.side)]
    if part.side is Side.HOT and state.mode == "reencrypt":
        digests = [state.new_digest, state.old_digest]
    return list(dict.fromkeys(digest.id for digest in digests if digest is not None))


def _segment(backups: dict[tuple[str, ...], Json], state: ReencryptionState, part: Part) -> Json:
    whole = state.segment_of(part.side)
    template = {name: value for name, value in backups[whole.flags].items() if name != "flags"}
    segment: Json = {
        **template,
        "offset": str(state.place_of(part.side, part.start)),
        "size": "dynamic" if part.size is None else str(part.size),
    }
    if whole.type == "crypt":
        segment["iv_tweak"] = str(whole.iv_tweak + part.start // SECTOR)
    if part.side is Side.HOT:
        segment["flags"] = [HOT]
    return segment


def finished(metadata: Json, state: ReencryptionState, size: int | None = None) -> tuple[Json, tuple[Range, ...]]:
    """
    Return the metadata of the volume as it will be, and the areas of key material and protection that are then unused.

    They are to be overwritten once both copies of the metadata no longer name them. Keyslots keep their numbers.
    """
    changed = copy.deepcopy(metadata)
    final = _backups_in(metadata)[state.final.flags]
    segment = {name: value for name, value in final.items() if name != "flags"}
    if size is not None and segment["size"] != "dynamic":
        segment["size"] = str(size)
    changed["segments"] = {"0": segment}
    new = None if state.new_digest is None else state.new_digest.id
    kept = {str(int(name)) for name in (metadata["digests"][str(new)]["keyslots"] if new is not None else ())}
    gone = {
        name for name, slot in metadata["keyslots"].items()
        if name not in kept and (slot["type"] == "reencrypt" or _is_of(metadata, name, state))
    }  # fmt: skip
    ranges = tuple(
        Range(int(metadata["keyslots"][name]["area"]["offset"]), int(metadata["keyslots"][name]["area"]["size"]))
        for name in sorted(gone, key=int)
    )
    changed["keyslots"] = {name: slot for name, slot in changed["keyslots"].items() if name not in gone}
    digests: Json = {}
    for name, digest in changed["digests"].items():
        digest["keyslots"] = [slot for slot in digest["keyslots"] if slot not in gone]
        digest["segments"] = ["0"] if new is not None and int(name) == new else []
        if digest["keyslots"] or digest["segments"]:
            digests[name] = digest
    changed["digests"] = digests
    for token in changed["tokens"].values():
        token["keyslots"] = [slot for slot in token["keyslots"] if slot not in gone]
    changed["config"] = _without_requirement(changed["config"])
    return changed, ranges


def _is_of(metadata: Json, keyslot: str, state: ReencryptionState) -> bool:
    """Whether a keyslot is of the old key, which goes; those of other digests, bound to nothing, stay."""
    old = state.old_digest
    if old is None or state.keeps_key:
        return False
    return keyslot in metadata["digests"][str(old.id)]["keyslots"]


def _without_requirement(config: Json) -> Json:
    left = [name for name in config["requirements"]["mandatory"] if not name.startswith("online-reencrypt")]
    others = {name: value for name, value in config.items() if name != "requirements"}
    return {**others, "requirements": {**config["requirements"], "mandatory": left}} if left else others


def largest_gap(metadata: Json) -> Range:
    """
    Return the largest unused stretch of the keyslot areas, in whole blocks of 4096 bytes.

    Raises HeaderError if there is none. So does cryptsetup (`LUKS2_find_area_max_gap`).
    """
    config = metadata["config"]
    at = 2 * (int(config["json_size"]) + BINARY_SIZE)
    end = at + int(config["keyslots_size"])
    best = Range(at, 0)
    areas = sorted((int(slot["area"]["offset"]), int(slot["area"]["size"])) for slot in metadata["keyslots"].values())
    for offset, size in [*areas, (end, 0)]:
        room = (offset - at) // _AREA_ALIGNMENT * _AREA_ALIGNMENT
        if room > best.size:
            best = Range(at, room)
        at = max(at, round_up(offset + size, _AREA_ALIGNMENT))
    if best.size == 0:
        raise HeaderError("the header has no room for a reencryption; remove a keyslot first")
    return best


def protection_area(protection: Protection) -> Json:
    """Return the area of the keyslot of a protection, as the metadata have it."""
    area: Json = {"offset": str(protection.offset), "size": str(protection.size), "type": protection.type}
    if protection.hash:
        area |= {"hash": protection.hash, "sector_size": protection.block_size}
    if protection.shift:
        area["shift_size"] = str(protection.shift)
    return area


def with_protection(metadata: Json, state: ReencryptionState, digest: Json) -> Json:
    """Return the metadata with the protection that the state has, and a digest which vouches for that."""
    changed = copy.deepcopy(metadata)
    changed["keyslots"][str(state.keyslot)]["area"] = protection_area(state.protection)
    old = None if state.metadata_digest is None else str(state.metadata_digest.id)
    number = next(str(number) for number in range(len(changed["digests"]) + 1) if str(number) not in changed["digests"])
    changed["digests"] = {name: value for name, value in changed["digests"].items() if name != old}
    changed["digests"][number] = digest
    return changed


def begun(metadata: Json, state: ReencryptionState) -> Json:
    """
    Return the metadata of a volume that is to be reencrypted from now on: what `state` says, but for its digest.

    The metadata have the old key's and the new key's digests and keyslots.
    """
    changed = copy.deepcopy(metadata)
    changed["keyslots"][str(state.keyslot)] = {
        "type": "reencrypt",
        "key_size": 1,
        "mode": state.mode,
        "direction": "forward" if state.forward else "backward",
        "priority": 0,
        "area": protection_area(state.protection),
    }
    for segment in _backups(state):
        changed["segments"][str(segment.id)] = segment_object_of(segment)
    changed = with_parts(changed, state, state.parts)
    config = changed["config"]
    mandatory = [*config.get("requirements", {}).get("mandatory", ()), f"online-reencrypt-v{state.version}"]
    config["requirements"] = {**config.get("requirements", {}), "mandatory": mandatory}
    return changed


def segment_object_of(segment: Segment) -> Json:
    """Return a segment as the metadata have it."""
    text: Json = {"type": segment.type, "offset": str(segment.offset)}
    text["size"] = "dynamic" if segment.size is None else str(segment.size)
    if segment.type == "crypt":
        text |= {
            "iv_tweak": str(segment.iv_tweak), "encryption": segment.encryption, "sector_size": segment.sector_size,
        }  # fmt: skip
    return {**text, "flags": list(segment.flags)} if segment.flags else text


def renumbered(state: ReencryptionState) -> ReencryptionState:
    """Return the state with the numbers that its backups have behind its parts, and what is bound to which number."""
    bindings = _bindings(state, state.parts)

    def rebound(digest: Digest | None) -> Digest | None:
        return None if digest is None else replace(digest, segments=frozenset(bindings[digest.id]))

    numbers = {id(segment): len(state.parts) + place for place, segment in enumerate(_backups(state))}
    return replace(
        state,
        previous=replace(state.previous, id=numbers[id(state.previous)]),
        final=replace(state.final, id=numbers[id(state.final)]),
        moved=None if state.moved is None else replace(state.moved, id=numbers[id(state.moved)]),
        old_digest=rebound(state.old_digest),
        new_digest=rebound(state.new_digest),
    )
