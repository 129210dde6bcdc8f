"""
One step of a conversion: a zone of the volume, from its old form to its new one, so that a crash loses nothing.

In this order, each on the storage before the next: what the zone is recovered from; a header which says that the zone
is in work; the zone; a header which says that it is done. cryptsetup does the same (lib/luks2/luks2_reencrypt.c,
`reencrypt_step`), but for the sync between the first two, without which a power cut leaves yesterday's protection.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from lukshdrfs.cipher import gcrypt_hash_blocks
from lukshdrfs.errors import HeaderError, LukshdrfsError
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.luks2.reencryption.edits import finished, renumbered, step_parts, with_parts
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Side
from lukshdrfs.sectors import round_down, round_up
from lukshdrfs.volume.moving.sides import Sides
from lukshdrfs.volume.moving.space import allocate

log = logging.getLogger(__name__)

LARGEST_ZONE = 32 << 20
"""Bytes that a step converts at most: more is not faster, and is in memory several times."""


@dataclass(frozen=True, slots=True)
class Zone:
    """A stretch of plaintext that a step converts."""

    side: Side
    """What it is before: old, or moved."""
    start: int
    """Bytes, on the volume."""
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Prepared:
    """A zone that has been read, and what is to be written."""

    zone: Zone
    protection: bytes | bytearray
    """For the header's area; empty where the data's old place protects them."""
    data: memoryview
    """As they will be on the payload."""


def alignment(state: ReencryptionState) -> int:
    """Return the bytes that a zone's borders are multiples of, but for the volume's end."""
    return max(state.sector_size, state.protection.block_size)


def next_zone(state: ReencryptionState, size: int, limit: int) -> Zone | None:
    """
    Return what the next step converts, at most `limit` bytes of it, None if nothing is left.

    `size` is the plaintext's. What the protection cannot hold is not taken.
    """
    left = [part for part in state.parts if part.side in (Side.OLD, Side.MOVED)]
    part = next((part for part in left if part.side is Side.OLD), left[0] if left else None)
    if part is None:
        return None
    end = size if part.size is None else part.start + part.size
    if part.side is Side.MOVED:
        return Zone(part.side, part.start, end)  # it was made for one step
    shift = state.protection.shift
    most = max(round_down(min(limit, shift or state.protection.reach), alignment(state)), alignment(state))
    if state.forward:
        return Zone(part.side, part.start, min(end, part.start + most))
    return Zone(part.side, max(part.start, round_up(end - most, alignment(state))), end)


def prepare(sides: Sides, state: ReencryptionState, zone: Zone, room: memoryview | None = None) -> Prepared:
    """Read a zone and convert it in memory, in `room` if there is some that is large enough. Raises PayloadError."""
    data = memoryview(bytearray(zone.size)) if room is None else room[: zone.size]
    place = sides.place(state, zone.side, zone.start)
    sides.payload.read_into(data, place)
    protection: bytes | bytearray = b""
    if place == sides.place(state, Side.NEW, zone.start):
        protection = _protection_of(state, data)
    sides.reencrypt(state, data, zone.start)
    return Prepared(zone, protection, data)


def _protection_of(state: ReencryptionState, data: memoryview) -> bytes | bytearray:
    """Return what goes into the header's area: the data's checksums, a whole block each, or the data themselves."""
    protection = state.protection
    if protection.in_place == "journal":
        return bytes(data)
    if len(data) % protection.block_size:
        raise HeaderError(f"checksums of {protection.block_size} bytes leave the end of {len(data)} unprotected")
    return gcrypt_hash_blocks(find_hash(protection.hash).gcrypt, data, protection.block_size)


def write(
    sides: Sides, header: LiveHeader, state: ReencryptionState, size: int, prepared: Prepared
) -> ReencryptionState:
    """
    Convert a zone that has been read, and whose old data are on the storage; return the state afterwards.

    The last zone's step ends the conversion: its state is the same, and the header is that of the volume as it will be.
    Nothing may have written to the zone since it was read. Raises PayloadError, InUse.
    """
    protect(sides, header, state, prepared)
    return convert(sides, header, state, size, prepared)


def protect(sides: Sides, header: LiveHeader, state: ReencryptionState, prepared: Prepared) -> None:
    """
    Put what a zone is recovered from on the storage. Neither header nor zone say so yet: it may fail.

    Where the zone is a hole, it gets its space first: on a full disk it could be neither written nor recovered.
    """
    zone = prepared.zone
    allocate(sides.payload, sides.place(state, Side.NEW, zone.start), zone.size)
    if prepared.protection:
        header.write_area(state.protection.offset, prepared.protection)


def convert(
    sides: Sides, header: LiveHeader, state: ReencryptionState, size: int, prepared: Prepared
) -> ReencryptionState:
    """
    Convert a zone whose protection is on the storage; return the state afterwards.

    If this fails, the header may say that the zone is in work. Then nobody may write to it until this, done again, has
    not failed: what was written would be taken for a part of the step.
    """
    zone = prepared.zone
    hot = renumbered(replace(state, parts=step_parts(state, size, zone.start, zone.end, Side.HOT)))
    header.commit(with_parts(header.metadata, state, hot.parts))
    sides.payload.write(prepared.data, sides.place(state, Side.NEW, zone.start))
    sides.payload.flush()
    return done(header, hot, size, zone)


def done(header: LiveHeader, hot: ReencryptionState, size: int, zone: Zone) -> ReencryptionState:
    """Write that a zone is done, whose data are on the storage, or all if it was the last one. Return the state."""
    parts = step_parts(hot, size, zone.start, zone.end, Side.NEW)
    after = renumbered(replace(hot, parts=parts))
    if [part.side for part in parts] == [Side.NEW]:
        finish(header, hot)
    else:
        header.commit(with_parts(header.metadata, hot, parts))
    return after


def finish(header: LiveHeader, state: ReencryptionState) -> None:
    """
    Write the header of the volume as it will be; then overwrite the old key's material and the protection.

    There is no moment at which a header says "all is converted" and "a conversion is under way": who comes upon that
    takes it for the beginning, and converts everything a second time (cryptsetup, all versions).
    """
    metadata, unused = finished(header.metadata, state)
    header.commit(metadata)
    try:
        header.overwrite((area.offset, area.size) for area in unused)
    except (LukshdrfsError, OSError) as error:  # it is over all the same, and cannot be done again
        log.error("what the conversion leaves in the header's keyslot areas is not overwritten: %s", error)  # noqa: TRY400
