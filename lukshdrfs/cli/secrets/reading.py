"""A secret's bytes, read from a file or descriptor into locked memory."""

from __future__ import annotations

import os
import stat

from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.headers import source_descriptor
from lukshdrfs.secret import SecretBytes

MAX_KEY_FILE = 8 * 1024 * 1024
"""Bytes of a key file (cryptsetup's compiled-in maximum)."""


_FIRST_BUFFER = 4096


_SKIP_STEP = 64 * 1024


MAX_PASSPHRASE = 512
"""Bytes of a line that is typed or piped (cryptsetup, `DEFAULT_PASSPHRASE_SIZE_MAX`)."""


def open_source(name: str, what: str) -> tuple[int, bool]:
    """Return a descriptor and whether it is ours to close."""
    given = source_descriptor(name)
    if given is not None:
        return given, False
    try:
        descriptor = os.open(name, os.O_RDONLY)
    except OSError as error:
        raise DeviceError(f"{what} {name}: {os.strerror(error.errno or 0)}") from None
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DeviceError(f"{what} {name} is a directory")
    return descriptor, True


def check_something_came(descriptor: int, described: str) -> None:
    """
    Raise UsageError for a source without a single byte, unless it is a file: an empty file is the empty key.

    The rule is cryptsetup's ("Nothing to read on input."): whoever was to send the key has failed.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UsageError(f"{described}: nothing came; name the key with --key-file or --passphrase-file")


def _read_up_to(descriptor: int, buffer: memoryview, what: str) -> int:
    """Read until the buffer is full or the file ends; return how many bytes there were."""
    done = 0
    while done < len(buffer):
        try:
            count = os.readv(descriptor, [buffer[done:]])
        except OSError as error:
            raise DeviceError(f"{what}: {os.strerror(error.errno or 0)}") from None
        if count == 0:
            break
        done += count
    return done


def read_file(name: str, offset: int, size: int | None, what: str) -> SecretBytes:
    """Return a file's content, or the part of it that is asked for, to the last byte."""
    described = f"{what} {name}"
    if size is not None and not 0 < size <= MAX_KEY_FILE:
        raise UsageError(f"{described}: a size of {size} bytes is not possible, at most {MAX_KEY_FILE} are")
    descriptor, ours = open_source(name, what)
    try:
        _skip(descriptor, offset, described)
        buffer, count = _read_limited(descriptor, MAX_KEY_FILE + 1 if size is None else size, described)
        if not count and not offset:
            check_something_came(descriptor, described)
    finally:
        if ours:
            os.close(descriptor)
    if count > MAX_KEY_FILE:
        buffer.wipe()
        raise UsageError(f"{described} has more than {MAX_KEY_FILE} bytes; name a part of it with --keyfile-size")
    if size is not None and count < size:
        buffer.wipe()
        raise UsageError(f"{described} has not {size} bytes from byte {offset} on")
    return buffer.take(count)


def _read_limited(descriptor: int, limit: int, described: str) -> tuple[SecretBytes, int]:
    """
    Read up to `limit` bytes; return a buffer and how much of it is filled.

    The buffer grows as needed: few users may lock as much memory as the largest key file has.
    """
    buffer = SecretBytes(min(limit, _FIRST_BUFFER))
    count = _read_up_to(descriptor, buffer.view, described)
    while count == len(buffer) < limit:
        with buffer:
            larger = SecretBytes(min(limit, len(buffer) * 2))
            larger.view[:count] = buffer.view
        buffer = larger
        count += _read_up_to(descriptor, buffer.view[count:], described)
    return buffer, count


def _skip(descriptor: int, offset: int, described: str) -> None:
    """Go to an offset, by reading in what is neither a file nor a block device."""
    if offset == 0:
        return
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        _skip_by_reading(descriptor, offset, described)
        return
    try:
        if offset > os.lseek(descriptor, 0, os.SEEK_END):
            raise UsageError(f"{described} ends before byte {offset}")
        os.lseek(descriptor, offset, os.SEEK_SET)
    except OSError as error:
        raise DeviceError(f"{described}: {os.strerror(error.errno or 0)}") from None


def _skip_by_reading(descriptor: int, offset: int, described: str) -> None:
    """Read what comes before an offset, a piece at a time: it may be more than there is memory."""
    with SecretBytes(min(offset, _SKIP_STEP)) as piece:
        left = offset
        while left:
            wanted = min(left, _SKIP_STEP)
            if _read_up_to(descriptor, piece.view[:wanted], described) < wanted:
                raise UsageError(f"{described} ends before byte {offset}")
            left -= wanted


def read_line(name: str, what: str, described: str = "") -> SecretBytes:
    """Return the first line without its newline. A carriage return before it counts, as for cryptsetup."""
    descriptor, ours = open_source(name, what)
    described = described or (what if name == "-" else f"{what} {name}")
    line = SecretBytes(MAX_PASSPHRASE + 1)
    done = 0
    try:
        # byte by byte: what comes after the line is not ours, standard input may hold more
        while done < len(line) and os.readv(descriptor, [line.view[done : done + 1]]):
            if line.view[done] == ord("\n"):
                return line.take(done)
            done += 1
        if not done:
            check_something_came(descriptor, described)
    except OSError as error:
        raise DeviceError(f"{described}: {os.strerror(error.errno or 0)}") from None
    finally:
        if ours:
            os.close(descriptor)
    if done > MAX_PASSPHRASE:
        line.wipe()
        raise UsageError(f"{described}: the passphrase has more than {MAX_PASSPHRASE} bytes; use --key-file")
    return line.take(done)
