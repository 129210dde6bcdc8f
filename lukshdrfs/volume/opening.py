"""
From a header and a payload to a volume.

What the header asks for is checked here against what is implemented, and against the payload, before any secret
is needed: a header that does not fit is told before anybody types a passphrase.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import DeviceError, HeaderError, InUse, UsageError
from lukshdrfs.headers.lock import ReencryptionLock
from lukshdrfs.headers.pin import HeaderPin
from lukshdrfs.headers.source import parse_from, read_header, source_descriptor
from lukshdrfs.headers.tolerance import FOR_UNLOCKING
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.unlock import UnlockedKey, accept_volume_key, unlock
from lukshdrfs.luks.keys.unlock_work import check_work_to_unlock
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState
from lukshdrfs.luks.model import Digest, Header, Segment
from lukshdrfs.payload import Access, Payload, PayloadName, is_network, open_payload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume.extents import Extent
from lukshdrfs.volume.foreign_data import Claim, PassOver, check_place, check_raw
from lukshdrfs.volume.half_converted import HalfConverted, check_served, digests_of, unlock_keys
from lukshdrfs.volume.moving.online import OnlineConversion
from lukshdrfs.volume.placement import Placed, Window, place, shift_of, window_of
from lukshdrfs.volume.usable import check_usable, overlaps_header
from lukshdrfs.volume.volume import Volume

log = logging.getLogger(__name__)


class LockedVolume:
    """A header and the payload it fits, before the key is there. Until it is, the payload is the caller's to close."""

    header_name: str | None = None
    """Where the detached header came from; None if it is attached, or was made here."""

    beside_data: bool = False
    """Whether that is the payload's own file."""

    def __init__(self, header: Header, payload: Payload, *, detached: bool, window: Window | None = None) -> None:
        """
        Check that the header can be used, and that it fits the payload.

        Raises UnsupportedFeature and HeaderError for what the header asks, DeviceError if the payload is too
        short, UsageError if `window` contradicts the header.
        """
        self.header = header
        self.payload = payload
        self.conversion = ReencryptionState.of(header)
        """What state the volume's conversion is in; None if it is in none."""
        check_usable(header, self.conversion)
        if not detached and header.segments[0].offset < len(header.area):
            raise UsageError("this is a header without data; name it with --header, and the payload beside it")
        if not detached and overlaps_header(header):
            raise HeaderError("a segment lies over the header itself")
        self._claim: Claim | None = None
        self._half: HalfConverted | None = None
        self._placed: list[Placed] = []
        if self.conversion is None:
            self._placed = place(header, payload.size, window or Window())
        else:
            check_served(self.conversion)
            self._half = HalfConverted(header, self.conversion, payload, shift_of(header, window or Window()))

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._half.size if self._half else self._placed[-1].start + self._placed[-1].size

    def check_work(self, keyslot: int | None = None, limits: KdfLimits | None = None) -> None:
        """Raise KeyslotError if no secret would be tried, for the work that it takes: before it is asked for."""
        segments = (placed.segment for placed in self._placed if placed.segment.type == "crypt")
        digests = {digest.id: digest for digest in (_digest_of(self.header, segment) for segment in segments)}
        needed = digests.values() if self.conversion is None else digests_of(self.conversion)
        check_work_to_unlock(self.header, needed, keyslot, limits or KdfLimits())

    def check_place(self, pass_over: PassOver) -> None:
        """Raise DeviceError if there is plainly something else where the volume's data should be; see `check_place`."""
        if self.conversion is not None and self.conversion.mode != "reencrypt":
            return  # a part of it is plaintext
        parts = tuple((part.payload_offset, part.size) for part in self._placed if part.segment.type == "crypt")
        if self._half:
            parts = ((self._half.first_byte, self._half.size),)
        self._claim = Claim(self.header.uuid, self.header_name is not None, self.beside_data, parts)
        check_place(self.payload, self._claim, pass_over)
        if pass_over.force or self.payload.read_only:
            self._claim = None  # there is nothing to see later that would matter

    def unlock(self, passphrase: SecretBytes, keyslot: int | None = None, limits: KdfLimits | None = None) -> Volume:
        """Return the volume that a passphrase opens. Raises what `lukshdrfs.luks.keys.unlock` raises."""
        return self._open(lambda digest: unlock(self.header, digest, passphrase, keyslot, limits))

    def unlock_with_volume_key(self, volume_key: SecretBytes, limits: KdfLimits | None = None) -> Volume:
        """Return the volume that a volume key opens. Raises WrongKey if it is another volume's."""
        return self._open(lambda digest: accept_volume_key(self.header, digest, volume_key, limits))

    def _open(self, key_of: Callable[[Digest], UnlockedKey]) -> Volume:
        """Make the volume; `key_of` is asked once for each digest, which usually is once."""
        if self._half:
            return self._open_half_converted(self._half, key_of)
        keys: dict[int, SecretBytes] = {}
        ciphers: dict[int, SectorCipher] = {}
        try:
            for segment in (placed.segment for placed in self._placed if placed.segment.type == "crypt"):
                digest = _digest_of(self.header, segment)
                if digest.id not in keys:
                    unlocked = key_of(digest)
                    log.info("key of digest %d: from keyslot %s", digest.id, unlocked.keyslot)
                    keys[digest.id] = unlocked.volume_key
                ciphers[segment.id] = SectorCipher(
                    CipherSpec.parse(segment.encryption), keys[digest.id], segment.sector_size
                )
        except BaseException:
            for cipher in ciphers.values():
                cipher.close()
            raise
        finally:
            for key in keys.values():
                key.wipe()
        self._look_again(ciphers)
        return Volume(self.payload, [self._extent(placed, ciphers) for placed in self._placed], self._properties())

    def _open_half_converted(self, half: HalfConverted, key_of: Callable[[Digest], UnlockedKey]) -> Volume:
        lock = ReencryptionLock(self.header.uuid)
        try:
            self._check_as_read()
            with unlock_keys(half.state, key_of) as keys:
                self._look_again({})
                opened = half.opened(keys, self.header_name)
        except BaseException:
            lock.release()
            raise
        volume = Volume(opened.payload, opened.extents, self._properties(), when_closed=lock.release)
        if not opened.payload.read_only:
            volume.conversion = OnlineConversion(
                volume, opened.sides, opened.state, half.size, half.header_opener(self.header_name, opened.state)
            )
        return volume

    def _check_as_read(self) -> None:
        """Raise InUse if the header is no longer as it was read: a conversion went on until its lock was ours."""
        if self.header_name is None:
            now = parse_from(self.payload, self.payload.name, None, FOR_UNLOCKING, warn=False)
        elif source_descriptor(self.header_name) is None:
            now = read_header(self.header_name, None, FOR_UNLOCKING, warn=False)
        else:
            return  # what it came from can be read once
        if now.area != self.header.area:
            raise InUse(
                f"header {self.header_name or self.payload.name}: another program has just changed it; try again"
            )

    def _look_again(self, ciphers: Mapping[int, SectorCipher]) -> None:
        """Raise DeviceError if there is something else on the payload since somebody was asked for the secret."""
        try:
            if self._claim is not None:
                check_place(self.payload, self._claim, PassOver())
        except BaseException:
            for cipher in ciphers.values():
                cipher.close()
            raise

    @staticmethod
    def _extent(placed: Placed, ciphers: Mapping[int, SectorCipher]) -> Extent:
        segment = placed.segment
        return Extent(
            placed.start,
            placed.size,
            placed.payload_offset,
            segment.sector_size,
            segment.iv_tweak,
            ciphers.get(segment.id),
            placed.dynamic,
        )

    def _properties(self) -> dict[str, str]:
        segment, header = self.header.segments[0], self.header
        if self.conversion is not None:
            segment = self.conversion.final if self.conversion.final.type == "crypt" else self.conversion.previous
        digest = header.digest_of_segment(segment.id)
        sizes = {slot.key_size for slot in header.keyslots if digest and slot.id in digest.keyslots}
        return {
            "type": header.type,
            "uuid": header.uuid,
            "label": header.label,
            "cipher": segment.encryption or "none",
            "key_size": str(max(sizes, default=0) * 8),
            "sector_size": str(segment.sector_size),
            "payload_offset": str(self._half.first_byte if self._half else self._placed[0].payload_offset),
        }


def _digest_of(header: Header, segment: Segment) -> Digest:
    digest = header.digest_of_segment(segment.id)
    if digest is None:
        raise HeaderError(f"segment {segment.id} is bound to no digest")
    return digest


def open_volume(
    payload: str | os.PathLike[str],
    *,
    header: str | os.PathLike[str] | None = None,
    passphrase: bytes | bytearray | None = None,
    volume_key: bytes | bytearray | None = None,
    keyslot: int | None = None,
    read_only: bool = False,
    offset: int | None = None,
    size: int | None = None,
    pin: HeaderPin | None = None,
    limits: KdfLimits | None = None,
    force: bool = False,
) -> Volume:
    """
    Open the volume that a payload and its header make, without FUSE.

    `payload` is a path or the address of an NBD export; `header` is either, or `fd:N` or `-`; left out, the header is
    at the start of the payload. Either `passphrase` (the exact bytes; a key file's content is one) or `volume_key` is
    needed. `keyslot` is the only one to try. `offset` and `size` (bytes) say where on the payload the data are if the
    header does not. The header is read once and never written. A payload on which something else is recognised is
    refused if it would be written to, or is an image or archive; `force` takes it all the same.

    Raises a LukshdrfsError: WrongKey, NoUsableKeyslot, HeaderError, UnsupportedFeature, DeviceError, InUse,
    OutOfMemory or UsageError.
    """
    secret = volume_key if passphrase is None else passphrase
    if secret is None or (passphrase is not None and volume_key is not None):
        raise UsageError("open_volume() takes either a passphrase or a volume key")
    parsed = read_header(payload if header is None else header, pin, FOR_UNLOCKING)
    part = None if header is None else window_of([parsed], Window(offset, size))
    opened = open_payload(PayloadName(os.fspath(payload)), Access(read_only=read_only, window=part))
    try:
        check_raw(opened, PassOver(force=force))
        locked = lock_volume(
            opened, parsed, header_name=None if header is None else os.fspath(header), window=Window(offset, size)
        )
        locked.check_place(PassOver(force=force))
        with SecretBytes.copy_of(secret) as locked_secret:
            if passphrase is None:
                return locked.unlock_with_volume_key(locked_secret, limits)
            return locked.unlock(locked_secret, keyslot, limits)
    except BaseException:
        opened.close()
        raise


def lock_volume(
    payload: Payload, header: Header, *, header_name: str | None, window: Window | None = None
) -> LockedVolume:
    """
    Put a payload together with a header.

    `header_name` is where a detached header came from, None if it is attached.
    Raises what LockedVolume raises, and UsageError if header and payload are one file.
    """
    beside_data = header_name is not None and _is_file(header_name, payload)
    if beside_data and overlaps_header(header):
        raise UsageError(f"header and payload are the same file: {header_name}")
    try:
        locked = LockedVolume(header, payload, detached=header_name is not None, window=window)
    except DeviceError as error:
        raise DeviceError(f"payload {payload.name}: {error}") from None
    locked.header_name, locked.beside_data = header_name, beside_data
    return locked


def _is_file(name: str, payload: Payload) -> bool:
    if source_descriptor(name) is not None or is_network(name):
        return False
    status = os.stat(name)  # noqa: PTH116 - a name as it came from the command line
    return (status.st_dev, status.st_ino) == payload.identity()
