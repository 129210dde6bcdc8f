"""
A volume whose conversion has begun and not ended: opened as it is, with both keys, and recovered first.

Until the metadata digest is verified, which takes the keys, no byte of the payload is used.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from lukshdrfs.errors import (
    DeviceError,
    HeaderError,
    InUse,
    KeyslotError,
    LukshdrfsError,
    NoUsableKeyslot,
    UnsupportedFeature,
    WrongKey,
)
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.headers.source import read_header, source_descriptor
from lukshdrfs.headers.tolerance import FOR_UNLOCKING
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.unlock import UnlockedKey
from lukshdrfs.luks.luks2.reencryption.digest import verify_metadata
from lukshdrfs.luks.luks2.reencryption.edits import renumbered, step_parts
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Side, Stage
from lukshdrfs.luks.model import Digest, Header
from lukshdrfs.payload import Payload, is_network
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR
from lukshdrfs.volume.extents import Extent
from lukshdrfs.volume.moving.recovery import HotZone, recover
from lukshdrfs.volume.moving.sides import Sides, plaintext_size
from lukshdrfs.volume.recovered_payload import RecoveredPayload

log = logging.getLogger(__name__)

_ALL_DECRYPTED = "the header says that the data are decrypted"
_USE_IT_PLAIN = "look whether they are plain, and use the payload without the header"


@dataclass(frozen=True, slots=True)
class Keys:
    """The volume keys of both sides. A context manager that wipes them."""

    old: SecretBytes | None
    new: SecretBytes | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in (self.old, self.new):
            if key is not None:
                key.wipe()


def digests_of(state: ReencryptionState) -> tuple[Digest, ...]:
    """Return the digests of the volume keys that are needed, each once."""
    if _is_old_key_lost(state):
        return (state.new_digest,) if state.new_digest is not None else ()
    return tuple(dict.fromkeys(digest for digest in (state.new_digest, state.old_digest) if digest is not None))


def _is_old_key_lost(state: ReencryptionState) -> bool:
    """Whether all is converted, and no keyslot of the old key is left: cryptsetup, cut off at its very end."""
    return state.stage is Stage.FINISHED and state.old_digest is not None and not state.old_digest.keyslots


def unlock_keys(
    state: ReencryptionState, key_of: Callable[[Digest], UnlockedKey], limits: KdfLimits | None = None
) -> Keys:
    """
    Return both keys, after verifying that they vouch for the metadata. `key_of` is asked once for each digest.

    Where all is converted, the old key may be lost; then there is nothing to verify, and it is not returned.
    Raises HeaderError if the keys do not vouch for the metadata, WrongKey and what `key_of` raises.
    """
    found: dict[int, SecretBytes] = {}
    try:
        for digest in digests_of(state):
            try:
                unlocked = key_of(digest)
            except (WrongKey, KeyslotError, NoUsableKeyslot) as error:
                if digest != state.old_digest or state.stage is not Stage.FINISHED:
                    raise
                _refuse_unverified(state, error)
                continue
            log.info("key of digest %d: from keyslot %s", digest.id, unlocked.keyslot)
            found[digest.id] = unlocked.volume_key
        old, new = (
            None if digest is None or digest.id not in found else SecretBytes.copy_of(found[digest.id].view)
            for digest in (state.old_digest, state.new_digest)
        )
    finally:
        for key in found.values():
            key.wipe()
    keys = Keys(old, new)
    try:
        if old is not None or state.old_digest is None:
            verify_metadata(state, old, new, limits or KdfLimits())
        else:
            _refuse_unverified(state, None)
    except BaseException:
        with keys:
            raise
    return keys


def _refuse_unverified(state: ReencryptionState, error: LukshdrfsError | None) -> None:
    """
    Refuse a finished decryption without the old key: anybody could have made such a header (CVE-2021-4122).

    Data that are encrypted under a new key have that key's own digest to vouch for it.
    """
    if state.mode != "decrypt":
        return
    if error is None:
        raise NoUsableKeyslot(f"{_ALL_DECRYPTED}, and nothing is left that could vouch for it; {_USE_IT_PLAIN}")
    raise type(error)(f"{error}; {_ALL_DECRYPTED}: if no passphrase opens it any more, {_USE_IT_PLAIN}")


def check_served(state: ReencryptionState) -> None:
    """Raise UnsupportedFeature unless a volume in this state can be used as it is."""
    if state.mode == "decrypt" and state.stage is Stage.FINISHED:
        raise UnsupportedFeature(
            "the data are decrypted already; 'lukshdrfs decrypt' ends it, and the payload is used without the header"
        )


@dataclass(frozen=True, slots=True)
class OpenedHalf:
    """What a half-converted volume is made of, once its keys are there."""

    payload: Payload
    extents: tuple[Extent, ...]
    """Those of the new side, of the zone in work and of the old side, in the order of the plaintext; some are empty."""
    state: ReencryptionState
    sides: Sides
    """With the ciphers of the extents."""


class HalfConverted:
    """A half-converted volume in its place on a payload, before the keys are there."""

    def __init__(self, header: Header, state: ReencryptionState, payload: Payload, shift: int = 0) -> None:
        """
        `shift` is where the data begin on the payload, in bytes, if the header leaves that open.

        Raises DeviceError unless it fits the payload.
        """
        self.header = header
        self.state = state
        self.payload = payload
        self.shift = shift
        self.size = plaintext_size(state, payload.size, shift)
        """Bytes of plaintext."""
        self.first_byte = min(state.previous.offset, state.final.offset) + shift
        """Of the volume, on the payload."""

    def opened(self, keys: Keys, header_name: str | None) -> OpenedHalf:
        """
        Return the volume as it is, what was cut off recovered.

        `header_name` is where the header is, None at the start of the payload: a cut-off step is recovered there and on
        the payload, unless that is read only; then it is served as if it were, and nothing is written.
        """
        with ExitStack() as opened:
            sides = Sides.opened(self.payload, self.state, keys.old, keys.new, self.shift)
            opened.callback(sides.close)
            state, payload = self.state, self.payload
            if state.stage is Stage.CRASHED:
                if payload.read_only:
                    zone = HotZone(sides, state, self.size, self._read_area)
                    payload = RecoveredPayload(payload, zone)
                    parts = step_parts(state, self.size, zone.start, zone.end, Side.NEW)
                    state = renumbered(replace(state, parts=parts))
                else:
                    with LiveHeader(self.header_path(header_name), self.header) as header:
                        state = recover(sides, header, state, self.size)
            opened.pop_all()
        return OpenedHalf(payload, tuple(self._extents(state, sides)), state, sides)

    def header_path(self, header_name: str | None) -> str:
        """Return the path of the header, for writing. Raises DeviceError if it has none."""
        name = self.payload.name if header_name is None else header_name
        if is_network(name) or source_descriptor(name) is not None:
            raise DeviceError(
                f"header {name}: the volume's conversion was cut off, and to recover it the header is written to; name "
                "it by its path, or look at the volume with --read-only"
            )
        return name

    def header_opener(self, header_name: str | None, state: ReencryptionState) -> Callable[[], LiveHeader]:
        """
        Return what opens the header for the steps to come; it has to say that the conversion is in that state.

        What is returned raises DeviceError if the header cannot be written to, InUse if it says something else.
        """
        directory = Path.cwd()

        def opened() -> LiveHeader:
            path = str(directory / self.header_path(header_name))
            header = read_header(path, None, FOR_UNLOCKING, warn=False)
            if ReencryptionState.of(header) != state:
                raise InUse(f"header {path}: another program has changed it; its conversion is not where it was")
            return LiveHeader(path, header)

        return opened

    def _read_area(self, offset: int, size: int) -> bytes:
        data = self.header.area[offset : offset + size]
        if len(data) < size:
            raise HeaderError("the header is cut off")
        return data

    def _extents(self, state: ReencryptionState, sides: Sides) -> Iterable[Extent]:
        """Yield an extent for each side and for the zone in work, also where it is empty: their borders move."""
        at = 0
        stretches = {part.side: part for part in state.parts}
        order = [Side.NEW, Side.HOT, Side.OLD] if state.forward else [Side.OLD, Side.HOT, Side.NEW]
        for side in [Side.MOVED, *order] if Side.MOVED in stretches else order:
            part = stretches.get(side)
            size = 0 if part is None else self.size - part.start if part.size is None else part.size
            whole = state.segment_of(side)
            yield Extent(
                at,
                size,
                sides.place(state, side, at),
                whole.sector_size,
                whole.iv_tweak + at // SECTOR,
                sides.cipher(side),
                error=errno.EIO if side is Side.HOT else 0,
            )
            at += size
