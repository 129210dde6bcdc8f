"""Why something cannot be written to, and the way out: what the kernel answers says little of it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys

from lukshdrfs.errors import DeviceError

_BLKROGET = 0x125E  # linux/fs.h
_FS_IOC_GETFLAGS = 0x80086601 if struct.calcsize("l") == 8 else 0x80046601
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20

_REASONS = {
    errno.EROFS: "'mount -o remount,rw' changes that",
    errno.EACCES: "its owner or root can change that",
    errno.ETXTBSY: "it is in use as a program or as swap",
}


def not_writable(name: str, described: str, error: OSError) -> DeviceError:
    """Return the error for what could not be opened for writing."""
    code = error.errno or 0
    if code not in (*_REASONS, errno.EPERM) or not os.access(name, os.R_OK):
        return DeviceError(f"{described}: {os.strerror(code)}")
    reason = _REASONS.get(code) or _attribute(name)
    return DeviceError(f"{described} cannot be written to: {os.strerror(code)}{reason and f' ({reason})'}")


def _attribute(name: str) -> str:
    """Return the attribute of chattr(1) by which even root may not write to a file; empty without one."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        flags = int.from_bytes(fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8))[:4], sys.byteorder)
    except OSError:
        flags = 0
    finally:
        os.close(descriptor)
    if flags & _IMMUTABLE:
        return f"it is immutable; 'chattr -i {name}' changes that"
    return f"it can only be appended to; 'chattr -a {name}' changes that" if flags & _APPEND_ONLY else ""


def check_writable_device(descriptor: int, name: str, described: str, way_out: str = "") -> None:
    """
    Raise DeviceError for a block device that refuses every write; `way_out` is told instead of how to change that.

    The kernel opens it for writing all the same, and says "Operation not permitted" when it is written to.
    """
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return
    answer = fcntl.ioctl(descriptor, _BLKROGET, bytes(4))
    if int.from_bytes(answer, sys.byteorder):
        way_out = way_out or f"'blockdev --setrw {name}' or the switch on the medium changes that"
        raise DeviceError(f"{described} cannot be written to: it is a read-only device; {way_out}")
