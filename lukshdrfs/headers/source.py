"""Reading a header from where the user says it is: a path, a descriptor or standard input. Once."""

from __future__ import annotations

import functools
import logging
import os
import re
import stat
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from lukshdrfs.errors import DeviceError, HeaderError, LukshdrfsError, NoHeader
from lukshdrfs.headers.lock import header_lock
from lukshdrfs.headers.pin import HeaderPin
from lukshdrfs.headers.tolerance import STRICT, Tolerance
from lukshdrfs.luks.damaged import with_damage_ignored
from lukshdrfs.luks.header import MAX_EXTENT, PREFIX_SIZE, header_extent, parse_header
from lukshdrfs.luks.keys.free_memory import require_memory
from lukshdrfs.luks.model import Header
from lukshdrfs.payload import NbdPayload, Payload, is_network
from lukshdrfs.recognition import DescriptorSource, names_of, recognise
from lukshdrfs.recognition.magics import SourceBytes
from lukshdrfs.recognition.openers import way_to_open

log = logging.getLogger(__name__)

_COPIES = 2
"""How often the bytes of a header are in memory while it is read and used."""


def read_header(
    source: str | os.PathLike[str],
    pin: HeaderPin | None = None,
    tolerance: Tolerance = STRICT,
    *,
    warn: bool = True,
) -> Header:
    """
    Read and parse a header; what could be worked around is in the log as warnings, with `warn`.

    `source` is a path, `fd:N`, or `-` for standard input. Nothing is written, ever.

    Raises DeviceError if it cannot be read, InUse if somebody is editing it, HeaderError if it is not valid or
    not the pinned one.
    """
    name = os.fspath(source)
    if is_network(name):
        with NbdPayload.open(name, read_only=True) as payload:
            return parse_from(payload, name, pin, tolerance, warn=warn)
    descriptor, ours = _open(name)
    try:
        with header_lock(descriptor, name, exclusive=False) if ours else nullcontext():
            return parse_from(descriptor, name, pin, tolerance, warn=warn)
    finally:
        if ours:
            os.close(descriptor)


def parse_from(
    source: int | Payload,
    name: str,
    pin: HeaderPin | None = None,
    tolerance: Tolerance = STRICT,
    *,
    warn: bool = True,
) -> Header:
    """
    Read and parse the header that an open file, device or stream (by its descriptor) or a payload holds.

    Otherwise as `read_header`.
    """
    pin = pin or HeaderPin()
    try:
        data, size = _read(source, name, whole=bool(pin.sha256), damaged=tolerance.checksums_wrong)
    except NoHeader:
        raise _no_header(source, name, b"") from None
    if pin.sha256:
        pin.check_bytes(data, name)
    if tolerance.checksums_wrong:
        data = with_damage_ignored(data)
        size = max(size, len(data))
        log.warning("header %s is damaged and read anyway (--force-header); what it says may be wrong", name)
    try:
        header = parse_header(data, size, unused_areas_missing=tolerance.unused_areas_missing)
        if (
            header.warnings
            and not (tolerance.foreign_signature or tolerance.checksums_wrong)
            and isinstance(source, int)
            and source_descriptor(name) is None
        ):
            _refuse_overwritten(source, len(data))
    except NoHeader:
        raise _no_header(source, name, data) from None
    except HeaderError as error:
        raise type(error)(f"header {name}: {error}") from None
    pin.check_uuid(header, name)
    for warning in header.warnings if warn else ():
        log.warning("header %s: %s", name, warning)
    return header if len(header.area) == len(data) else replace(header, area=bytes(header.area))


def _no_header(source: int | Payload, name: str, data: bytes) -> NoHeader:
    """Return the error for a place without a LUKS header: it says what is there instead, as far as that is known."""
    message = f"header {name}: there is no LUKS header in it"
    try:
        if not isinstance(source, int):
            found = recognise(source)
        elif DescriptorSource.fits(source):
            found = recognise(DescriptorSource(source))
        else:
            found = recognise(SourceBytes(data))
    except LukshdrfsError as error:
        log.debug("what is there cannot be told: %s", error)
        found = ()
    if not found:
        return NoHeader(message)
    way, names = way_to_open(found), names_of(found)
    return NoHeader(f"{message}, but {names}{f'; {way}' if way else ''}", names)


def _refuse_overwritten(descriptor: int, header_size: int) -> None:
    """
    Raise HeaderError if a damaged header has something else's signature in it.

    Somebody made another use of the place then, and what is left of the header is not the truth of today.
    cryptsetup asks libblkid likewise (lib/luks2/luks2_disk_metadata.c, `detect_device_signatures`).
    """
    found = [
        signature
        for signature in recognise(DescriptorSource(descriptor))
        # of what is at the end, libblkid's opinion counts, as it does to cryptsetup
        if not signature.is_luks and (signature.by_libblkid or signature.offset < header_size)
    ]
    if found:
        raise HeaderError(f"it is damaged, and {names_of(found)} is there too: it has been overwritten")


def source_descriptor(name: str) -> int | None:
    """
    Return the descriptor that `-` or `fd:N` names, None for a path. Raises DeviceError for a bad number.

    A shell's `<(command)` is a path, /dev/fd/N, which a process that is not dumpable cannot open; it is taken for fd:N.
    """
    if name in ("-", "/dev/stdin"):
        return 0
    if shell := re.fullmatch(r"/(?:dev|proc/self)/fd/([0-9]{1,9})", name):
        return int(shell[1])
    if not name.startswith("fd:"):
        return None
    if not re.fullmatch("[0-9]{1,9}", name[3:]):
        raise DeviceError(f"{name}: expected fd: and a number")
    return int(name[3:])


def _open(name: str) -> tuple[int, bool]:
    """Return a descriptor and whether it is ours to close."""
    given = source_descriptor(name)
    if given is not None:
        return given, False
    try:
        return os.open(name, os.O_RDONLY), True
    except OSError as error:
        raise DeviceError(f"header {name}: {os.strerror(error.errno or 0)}") from None


def _read(source: int | Payload, name: str, *, whole: bool, damaged: bool) -> tuple[bytes, int]:
    """Return the header's bytes, and the size of what they are from."""
    if not isinstance(source, int):
        return _read_start(functools.partial(_read_payload, source), source.size, name, whole=whole, damaged=damaged)
    return _read_descriptor(source, name, whole=whole, damaged=damaged)


def _read_payload(payload: Payload, size: int) -> bytes:
    data = bytearray(size)
    payload.read_into(memoryview(data), 0)
    return bytes(data)


def _read_descriptor(descriptor: int, name: str, *, whole: bool, damaged: bool) -> tuple[bytes, int]:
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise DeviceError(f"header {name} is a directory")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return _read_stream(descriptor, name)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        return _read_start(functools.partial(_read_range, descriptor), size, name, whole=whole, damaged=damaged)
    except OSError as error:
        raise DeviceError(f"header {name}: {os.strerror(error.errno or 0)}") from None


def _read_stream(descriptor: int, name: str) -> tuple[bytes, int]:
    data = bytearray()
    while piece := os.read(descriptor, 1 << 20):
        data += piece
        if len(data) > MAX_EXTENT:
            raise HeaderError(f"header {name} is larger than {MAX_EXTENT} bytes, which no header is")
    if not data:
        raise DeviceError(f"header {name}: nothing came; has the program that was to send it failed?")
    return bytes(data), len(data)


def _read_start(read: Callable[[int], bytes], size: int, name: str, *, whole: bool, damaged: bool) -> tuple[bytes, int]:
    """Read as much of the start as the header takes, by a function that returns so many bytes of it."""
    if damaged:
        return read(min(size, MAX_EXTENT)), size
    prefix = read(min(size, PREFIX_SIZE))
    try:
        wanted = size if whole else min(size, header_extent(prefix))
    except HeaderError as error:
        raise type(error)(f"header {name}: {error}") from None
    if wanted > MAX_EXTENT:
        raise HeaderError(f"header {name} is larger than {MAX_EXTENT} bytes, which no header is")
    require_memory(f"header {name}", _COPIES * wanted // 1024)
    return (prefix[:wanted] if wanted <= len(prefix) else read(wanted)), size


def _read_range(descriptor: int, size: int) -> bytes:
    """Read from the start, whatever the descriptor's position."""
    data = os.pread(descriptor, size, 0)  # as a rule all of it, without a copy
    while len(data) < size:
        piece = os.pread(descriptor, size - len(data), len(data))
        if not piece:
            break
        data += piece
    return data
