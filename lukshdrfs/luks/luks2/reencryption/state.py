"""
What state the reencryption of a LUKS2 volume is in.

The metadata have the segments as they are now, in the order of the plaintext, and the volume as it was before and as it
will be ("backups"). All of it is checked against all else here: nothing vouches for the segments as they are now, and
whoever could move their borders would have data encrypted twice, or not at all.

Sources: LUKS2 On-Disk Format 1.1.4, sections 3.2.2, 3.2.3 and 4.9; cryptsetup 2.8, lib/luks2/luks2_reencrypt.c
(`reencrypt_assign_segments`, `reencrypt_make_segment_*`) and luks2_keyslot_reenc.c.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.luks2 import strict_json as sj
from lukshdrfs.luks.luks2.binary import choose_copy
from lukshdrfs.luks.luks2.parse import parse_backup_segments
from lukshdrfs.luks.luks2.reencryption.checks import check_hot, check_mode, check_protection, contradiction, same
from lukshdrfs.luks.luks2.requirements import is_reencrypt_candidate
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.model import Digest, Header, Segment
from lukshdrfs.sectors import SECTOR

HOT = "in-reencryption"
"""The flag of the segment that a step is at."""
_VERSIONS = {"online-reencrypt-v2": 2, "online-reencrypt-v3": 3}


class Side(Enum):
    """What a part of a half-done volume is."""

    OLD = "old"
    """As it was before."""
    NEW = "new"
    """As it will be."""
    HOT = "hot"
    """Where a step was cut off: in sectors of both kinds."""
    MOVED = "moved"
    """The first part, as it was before, in another place: with data shift only."""


class Stage(Enum):
    """How a half-done volume was left."""

    CLEAN = "clean"
    """Between two steps."""
    CRASHED = "crashed"
    """In a step: what was cut off is to be recovered first."""
    FINISHED = "finished"
    """All data are converted, and only the header has not been told."""


@dataclass(frozen=True, slots=True)
class Protection:
    """What a step that is cut off is recovered from."""

    type: str
    """`checksum`, `journal`, `datashift`, `datashift-checksum`, `datashift-journal` or `none`."""
    offset: int
    """Of the keyslot area that is set aside for it, in bytes of the header."""
    size: int
    """Bytes of that area."""
    hash: str = ""
    """Of the checksums."""
    block_size: int = 0
    """Bytes that one checksum is of."""
    shift: int = 0
    """Bytes by which data shift moves the data."""

    @property
    def in_place(self) -> str:
        """Which of `checksum` and `journal` protects data that stay in their place; empty if neither."""
        return self.type.removeprefix("datashift-") if self.type not in ("datashift", "none") else ""

    @property
    def reach(self) -> int:
        """Bytes of the payload that the area protects at a time."""
        if self.in_place == "checksum":
            return self.size // find_hash(self.hash).digest_size * self.block_size
        return self.size if self.in_place == "journal" else 0


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of plaintext."""

    side: Side
    start: int
    """First byte of the plaintext."""
    size: int | None
    """Bytes; None: as far as the payload goes."""


@dataclass(frozen=True, slots=True)
class ReencryptionState:
    """A reencryption that has begun and not ended."""

    version: int
    """Of the requirement: 2, or 3 for a decryption with data shift."""
    mode: str
    """`encrypt`, `decrypt` or `reencrypt`."""
    forward: bool
    """Whether it goes from the first byte to the last."""
    keyslot: int
    """Of the protection."""
    protection: Protection
    previous: Segment
    """The volume as it was."""
    final: Segment
    """The volume as it will be."""
    moved: Segment | None
    """Where the first part has been put, with data shift."""
    old_digest: Digest | None
    """Of the old volume key; None if the data were plain."""
    new_digest: Digest | None
    """Of the new volume key; None if the data will be plain."""
    metadata_digest: Digest | None
    """What vouches for all this; None if it is missing."""
    parts: tuple[Part, ...]
    """As they are now, one after the other."""

    @staticmethod
    def of(header: Header) -> ReencryptionState | None:
        """
        Return the state of the reencryption that a header is in, None if it is in none.

        Raises HeaderError for metadata that contradict themselves, UnsupportedFeature for what is not implemented.
        """
        requirement = next((name for name in header.requirements if is_reencrypt_candidate(name)), None)
        return None if requirement is None else _state_of(header, requirement)

    @property
    def stage(self) -> Stage:
        """How it was left."""
        if any(part.side is Side.HOT for part in self.parts):
            return Stage.CRASHED
        return Stage.FINISHED if [part.side for part in self.parts] == [Side.NEW] else Stage.CLEAN

    @property
    def sector_size(self) -> int:
        """Bytes of the larger sector of the two sides: what borders are multiples of."""
        return max(self.previous.sector_size, self.final.sector_size)

    @property
    def keeps_key(self) -> bool:
        """Whether both sides have the same volume key."""
        return self.mode == "reencrypt" and self.old_digest == self.new_digest

    @property
    def hot(self) -> Part | None:
        """The part that a step was cut off in."""
        return next((part for part in self.parts if part.side is Side.HOT), None)

    def converted(self, size: int) -> int:
        """Return how many bytes of a plaintext of `size` bytes are converted."""
        return sum(_size_of(part, size) for part in self.parts if part.side is Side.NEW)

    def place_of(self, side: Side, start: int) -> int:
        """Return where on the payload the plaintext from byte `start` on is, if it is of that side."""
        if side is Side.MOVED:
            assert self.moved is not None
            return self.moved.offset + start
        return (self.previous if side is Side.OLD else self.final).offset + start

    def segment_of(self, side: Side) -> Segment:
        """Return the whole volume as it is on one side."""
        return self.previous if side in (Side.OLD, Side.MOVED) else self.final

    def digest_of(self, side: Side) -> Digest | None:
        """Return the digest of the key of one side, None where that is plain."""
        return self.old_digest if side in (Side.OLD, Side.MOVED) else self.new_digest


def _size_of(part: Part, size: int) -> int:
    return max(0, size - part.start) if part.size is None else part.size


def _state_of(header: Header, requirement: str) -> ReencryptionState:
    if requirement not in _VERSIONS:
        raise UnsupportedFeature(
            f"the header requires {requirement}, which is not supported; if it is an old reencryption, "
            "'cryptsetup repair' brings it to the state of today"
        )
    metadata = choose_copy(header.area)[0].metadata
    slots = [(int(name), slot) for name, slot in sj.objects(metadata, "keyslots") if slot["type"] == "reencrypt"]
    if not slots:
        raise contradiction("it has no keyslot")
    number, slot = slots[0]
    backups = parse_backup_segments(metadata)
    previous, final = (_backup(backups, name) for name in ("backup-previous", "backup-final"))
    moved = next((segment for segment in backups if "backup-moved-segment" in segment.flags), None)
    if previous is None or final is None:
        raise contradiction("the volume's state before or after it is missing")
    old, new = header.digest_of_segment(previous.id), header.digest_of_segment(final.id)
    state = ReencryptionState(
        version=_VERSIONS[requirement],
        mode=slot["mode"],
        forward=slot["direction"] == "forward",
        keyslot=number,
        protection=_protection(slot["area"]),
        previous=previous,
        final=final,
        moved=moved,
        old_digest=old,
        new_digest=new,
        metadata_digest=header.digest_of_keyslot(number),
        parts=(),
    )
    check_mode(state)
    check_protection(state)
    checked = _with_parts(state, header)
    check_hot(checked)
    return checked


def _backup(backups: tuple[Segment, ...], flag: str) -> Segment | None:
    return next((segment for segment in reversed(backups) if flag in segment.flags), None)


def _protection(area: Json) -> Protection:
    kind = area["type"]
    details: dict[str, Any] = {}
    if kind in ("checksum", "datashift-checksum"):
        details = {"hash": area["hash"], "block_size": area["sector_size"]}
    if kind in ("datashift", "datashift-journal", "datashift-checksum"):
        details["shift"] = sj.get_uint64(area, "shift_size", "reencrypt keyslot area")
    return Protection(
        kind,
        sj.get_uint64(area, "offset", "reencrypt keyslot area"),
        sj.get_uint64(area, "size", "reencrypt keyslot area"),
        **details,
    )


def _with_parts(state: ReencryptionState, header: Header) -> ReencryptionState:
    """Return the state with its parts, after checking that each is where it has to be."""
    parts: list[Part] = []
    start = 0
    for segment in header.segments:
        side = _side_of(state, segment, start, header)
        parts.append(Part(side, start, segment.size))
        if segment.size is not None:
            if segment.size % state.sector_size and segment is not header.segments[-1]:
                raise contradiction(f"segment {segment.id} does not end where sectors of both sides do")
            start += segment.size
    order = [part.side for part in parts]
    wanted = [Side.NEW, Side.HOT, Side.OLD] if state.forward else [Side.OLD, Side.HOT, Side.NEW]
    behind = order[1:] if order[:1] == [Side.MOVED] else order
    if behind != [side for side in wanted if side in behind]:
        raise contradiction("its segments are not in the order of its direction")
    total = state.previous.size
    if state.moved is None and total is not None and (header.segments[-1].size is None or start != total):
        raise contradiction("its segments are more or less than the volume")
    return replace(state, parts=tuple(parts))


def _side_of(state: ReencryptionState, segment: Segment, start: int, header: Header) -> Side:
    """Return which side a segment is of, after checking that all it says is as that side's has to be."""
    sides = [Side.HOT] if HOT in segment.flags else [Side.NEW, Side.OLD]
    if start == 0 and state.moved is not None and HOT not in segment.flags:
        sides.append(Side.MOVED)
    for side in sides:
        whole = state.segment_of(side)
        if not same(segment, whole) or segment.offset != state.place_of(side, start):
            continue
        if segment.type == "crypt" and segment.iv_tweak != whole.iv_tweak + start // SECTOR:
            continue
        if side is Side.MOVED and segment.size != (state.moved and state.moved.size):
            continue
        digest = state.digest_of(side)
        if segment.type == "crypt" and (digest is None or segment.id not in digest.segments):
            continue
        if side is not Side.HOT and any(segment.id in other.segments for other in header.digests if other != digest):
            continue
        if set(segment.flags) - {HOT} or segment.integrity:
            raise UnsupportedFeature(f"segment {segment.id} has flags or integrity that are not supported")
        return side
    raise contradiction(f"segment {segment.id} is not what it has to be, or not where")
