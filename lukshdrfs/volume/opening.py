"""
From a header and a payload to a volume.

What the header asks for is checked here against what is implemented, and against the payload, before any secret
is needed: a header that does not fit is told before anybody types a passphrase.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lukshdrfs.cipher import CipherSpec, SectorCipher, check_sector_size
from lukshdrfs.errors import DeviceError, HeaderError, UnsupportedFeature, UsageError
from lukshdrfs.luks import Digest, Header, KdfLimits, Segment, UnlockedKey, accept_volume_key, unlock
from lukshdrfs.luks.unlock_work import check_work_to_unlock
from lukshdrfs.payload import FilePayload, Payload, is_network, is_plain, open_indirect
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import round_down
from lukshdrfs.volume.extent import Extent
from lukshdrfs.volume.header_source import HeaderPin, read_header, source_descriptor
from lukshdrfs.volume.recognition import Claim, PassOver, check_place, check_raw
from lukshdrfs.volume.volume import Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of the payload is the volume, where the header leaves that open."""

    offset: int | None = None
    """Bytes; only for a header whose own offset is 0."""
    size: int | None = None
    """Bytes; only for a header whose last segment is dynamic."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A segment that is known to lie on the payload."""

    segment: Segment
    start: int
    size: int
    payload_offset: int
    dynamic: bool


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
        check_usable(header)
        if not detached and header.segments[0].offset < len(header.area):
            raise UsageError("this is a header without data; name it with --header, and the payload beside it")
        if not detached and overlaps_header(header):
            raise HeaderError("a segment lies over the header itself")
        self._claim: Claim | None = None
        self._placed = _place(header, payload.size, window or Window())

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._placed[-1].start + self._placed[-1].size

    def check_work(self, keyslot: int | None = None, limits: KdfLimits | None = None) -> None:
        """Raise KeyslotError if no secret would be tried, for the work that it takes: before it is asked for."""
        segments = (placed.segment for placed in self._placed if placed.segment.type == "crypt")
        digests = {digest.id: digest for digest in (_digest_of(self.header, segment) for segment in segments)}
        check_work_to_unlock(self.header, digests.values(), keyslot, limits or KdfLimits())

    def check_place(self, pass_over: PassOver) -> None:
        """Raise DeviceError if there is plainly something else where the volume's data should be; see `check_place`."""
        parts = tuple((part.payload_offset, part.size) for part in self._placed if part.segment.type == "crypt")
        self._claim = Claim(self.header.uuid, self.header_name is not None, self.beside_data, parts)
        check_place(self.payload, self._claim, pass_over)
        if pass_over.force or self.payload.read_only:
            self._claim = None  # there is nothing to see later that would matter

    def unlock(self, passphrase: SecretBytes, keyslot: int | None = None, limits: KdfLimits | None = None) -> Volume:
        """Return the volume that a passphrase opens. Raises what `lukshdrfs.luks.unlock` raises."""
        return self._open(lambda digest: unlock(self.header, digest, passphrase, keyslot, limits))

    def unlock_with_volume_key(self, volume_key: SecretBytes, limits: KdfLimits | None = None) -> Volume:
        """Return the volume that a volume key opens. Raises WrongKey if it is another volume's."""
        return self._open(lambda digest: accept_volume_key(self.header, digest, volume_key, limits))

    def _open(self, key_of: Callable[[Digest], UnlockedKey]) -> Volume:
        """Make the volume; `key_of` is asked once for each digest, which usually is once."""
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
    def _extent(placed: _Placed, ciphers: Mapping[int, SectorCipher]) -> Extent:
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
        digest = header.digest_of_segment(segment.id)
        sizes = {slot.key_size for slot in header.keyslots if digest and slot.id in digest.keyslots}
        return {
            "type": header.type,
            "uuid": header.uuid,
            "label": header.label,
            "cipher": segment.encryption or "none",
            "key_size": str(max(sizes, default=0) * 8),
            "sector_size": str(segment.sector_size),
            "payload_offset": str(self._placed[0].payload_offset),
        }


def overlaps_header(header: Header) -> bool:
    """Whether a segment would begin in the header, were that on the payload itself."""
    return any(segment.offset < len(header.area) for segment in header.segments)


def _digest_of(header: Header, segment: Segment) -> Digest:
    digest = header.digest_of_segment(segment.id)
    if digest is None:
        raise HeaderError(f"segment {segment.id} is bound to no digest")
    return digest


def check_usable(header: Header) -> None:
    """
    Raise UnsupportedFeature if the header asks for anything that is not implemented.

    A program that meets a requirement it does not know must not touch the data (LUKS2 specification, section 3.4
    "Config object"); a reencryption in progress is such a requirement too.
    """
    if header.requirements:
        names = ", ".join(header.requirements)
        raise UnsupportedFeature(
            f"the header requires {names}, which is not supported: its data and keyslots are not touched; 'info', "
            "'header verify' and 'header backup' work"
        )
    for segment in header.segments:
        where = f"segment {segment.id}"
        if segment.type not in ("crypt", "linear"):
            raise UnsupportedFeature(f"{where} has the type {segment.type!r}, which is not supported")
        if segment.flags:
            raise UnsupportedFeature(f"{where} has the flags {', '.join(segment.flags)}, which are not supported")
        if segment.integrity:
            raise UnsupportedFeature(f"{where} has integrity protection ({segment.integrity}), not supported")
        if segment.type == "crypt":
            CipherSpec.parse(segment.encryption)
            check_sector_size(segment.sector_size)
        else:
            log.warning("%s is linear: what is in it is stored unencrypted", where)
    if all(segment.type == "linear" for segment in header.segments):
        # any passphrase would do, and whoever swapped the header would read what is written
        raise UnsupportedFeature(
            "no segment of the header is encrypted; the payload is plaintext, or the header is forged"
        )
    first = header.segments[0]
    if len(header.segments) == 1 and first.iv_tweak:
        raise UnsupportedFeature(
            f"segment 0 is alone and has iv_tweak {first.iv_tweak}: by the specification, its first sector's IV is "
            f"{first.iv_tweak}, to cryptsetup 2.6 it is 0; the wrong reading would destroy data, so neither is taken"
        )


def _place(header: Header, payload_size: int, window: Window) -> list[_Placed]:
    first, last = header.segments[0], header.segments[-1]
    if window.offset is not None and first.offset not in (0, window.offset):
        raise UsageError(f"--offset {window.offset}: the header itself says {first.offset}")
    if window.size is not None and last.size is not None:
        raise UsageError(f"--size {window.size}: the header itself says how large the volume is")
    shift = window.offset if window.offset is not None and first.offset == 0 else 0
    if shift % first.sector_size or (window.size or 0) % last.sector_size:
        raise UsageError("--offset and --size must be multiples of the sector size")
    placed: list[_Placed] = []
    start = 0
    for segment in header.segments:
        offset = segment.offset + shift
        wanted = segment.size
        if wanted is None and window.size is not None:
            wanted = window.size - start
        size = _size_on_payload(segment, offset, wanted, payload_size)
        placed.append(_Placed(segment, start, size, offset, dynamic=wanted is None))
        start += size
    return placed


def _size_on_payload(segment: Segment, offset: int, wanted: int | None, payload_size: int) -> int:
    """Return the bytes of a segment, after checking that the payload has them."""
    there = payload_size - offset
    if wanted is None:
        if there < segment.sector_size:
            raise DeviceError(
                f"the payload has {payload_size} bytes; the header puts the data at byte {offset}, "
                f"in sectors of {segment.sector_size}: not even one fits"
            )
        if tail := there % segment.sector_size:
            log.warning("the payload's last %d bytes are less than a sector and are left out", tail)
        return round_down(there, segment.sector_size)
    if wanted <= 0 and segment.size is None:
        raise UsageError("--size: the volume would be empty")
    if wanted <= 0 or wanted % segment.sector_size:
        raise HeaderError(f"segment {segment.id} has {wanted} bytes, not whole sectors")
    if wanted > there and segment.size is None:
        raise UsageError(f"--size: the payload has {there} bytes from byte {offset} on")
    if wanted > there:
        raise DeviceError(
            f"the payload has {payload_size} bytes; the header's segment {segment.id} needs {offset + wanted}: "
            "is it the header of another volume?"
        )
    return wanted


def window_of(headers: Sequence[Header], window: Window) -> tuple[int, int] | None:
    """Return the part of the payload that any of some headers could mean (offset and size in bytes), None for all."""
    ranges = []
    for header in headers:
        last = header.segments[-1]
        start = min(segment.offset for segment in header.segments) or window.offset or 0
        size = window.size if last.size is None else last.offset - start + last.size
        if last.size is not None and window.offset and header.segments[0].offset == 0:
            size = last.offset + last.size
        if size is None:
            return None
        ranges.append((start, start + size))
    start, end = min(first for first, _ in ranges), max(last for _, last in ranges)
    return start, end - start


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
    parsed = read_header(payload if header is None else header, pin, salvage=True)
    part = None if header is None else window_of([parsed], Window(offset, size))
    opened: Payload
    if is_plain(os.fspath(payload)):
        opened = FilePayload.open(payload, read_only=read_only, window=part)
    else:
        opened = open_indirect(os.fspath(payload), "raw", read_only=read_only)
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
