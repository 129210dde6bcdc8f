"""
QEMU's image locks, so that no one opens the ciphertext twice by mistake, QEMU included.

A user of an image holds shared open-file-description locks on single bytes of it: byte 100+n says "I have
permission n", byte 200+n says "I do not share permission n". It then looks whether anybody else holds the
contrary byte. Source: QEMU, block/file-posix.c (`RAW_LOCK_PERM_BASE`, `raw_check_lock_bytes`) and
include/block/block-common.h (`BLK_PERM_*`). The kernel drops the locks when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct

from lukshdrfs.errors import InUse

log = logging.getLogger(__name__)

_FLOCK = struct.Struct("@hhqqi0q")  # struct flock of fcntl(2): type, whence, start, len, pid

_PERMISSION_BASE = 100
_UNSHARED_BASE = 200
_WINDOWS_BASE, _ALL_WINDOWS, _WINDOW_UNIT = 1 << 61, 1 << 61, 512
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3


def lock_image(descriptor: int, name: str, *, writable: bool, window: tuple[int, int] | None = None) -> None:
    """
    Take the locks of a reader, or of the only writer, on an open image.

    Nobody may write while it is open here; others may read if it is open for reading only. With a `window` (offset and
    size in bytes), other windows of ours may be written to meanwhile, but nothing that overlaps; QEMU, which knows of
    no windows, is kept out. Raises InUse if somebody else is in the way. A file system without such locks is a warning.
    """
    held = {_CONSISTENT_READ, _WRITE, _RESIZE} if writable else {_CONSISTENT_READ}
    unshared = {_WRITE, _RESIZE}
    try:
        if window is None:
            _keep_windows_out(descriptor, writable=writable)
        beside_windows = window is not None and _lock_window(descriptor, window, writable=writable)
        for byte in [_PERMISSION_BASE + n for n in held] + [_UNSHARED_BASE + n for n in unshared]:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _pack(fcntl.F_RDLCK, byte))
        if beside_windows:
            return  # they keep everybody else out, and so did the first of them when it came
        contrary = [_UNSHARED_BASE + n for n in held] + [_PERMISSION_BASE + n for n in unshared]
        taken = [byte for byte in contrary if _held_by_others(descriptor, byte)]
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise InUse(f"payload {name}: somebody else has it locked") from None
        log.warning("payload %s cannot be locked against other users: %s", name, os.strerror(error.errno or 0))
        return
    if taken:
        raise InUse(f"payload {name} is in use by another program (lukshdrfs, QEMU, …); close it there first")


def _lock_window(descriptor: int, window: tuple[int, int], *, writable: bool) -> bool:
    """
    Lock a byte for each 512 of the window, far behind everything that anybody else locks.

    Return whether there are other windows of this image.
    """
    start, size = _WINDOWS_BASE + window[0] // _WINDOW_UNIT, -(-window[1] // _WINDOW_UNIT)
    kind = fcntl.F_WRLCK if writable else fcntl.F_RDLCK
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _pack(kind, start, size))
    others = _held_by_others(descriptor, _WINDOWS_BASE - 1)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _pack(fcntl.F_RDLCK, _WINDOWS_BASE - 1))
    return others


def _keep_windows_out(descriptor: int, *, writable: bool) -> None:
    """
    Lock the bytes of all windows, for who takes the whole.

    Windows hold the bytes by which QEMU's locks tell who reads and who writes; so one that comes to others cannot tell
    by those whether somebody else is there, too.
    """
    for_writing = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY  # else there is no such lock
    kind = fcntl.F_WRLCK if writable and for_writing else fcntl.F_RDLCK
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _pack(kind, _WINDOWS_BASE, _ALL_WINDOWS))


def _pack(kind: int, byte: int, size: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, size, 0)


def _held_by_others(descriptor: int, byte: int) -> bool:
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _pack(fcntl.F_WRLCK, byte))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
