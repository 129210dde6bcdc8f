"""
The file behind a loop device: other names of the same bytes, which have to be locked under all of them.

mount(8) makes a loop device by itself for its option `offset=`, and people make them; whoever opens the file by its
path knows nothing of that. Loop devices can lie on loop devices, and have partitions.

Sources: loop(4) (`LOOP_GET_STATUS64`), linux/loop.h (`struct loop_info64`), the kernel's Documentation/ABI for
`/sys/block/loopN/loop` and `/sys/block/DISK/PARTITION`.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_LOOP_INFO64 = struct.Struct("@QQQQQIIII64s64s32s2Q")
_DEEPEST = 16
"""More loop devices on loop devices than the kernel allows."""
_UNIT = 512
"""What sysfs counts the size of block devices in."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What lies behind a loop device, opened."""

    descriptor: int
    """The caller's to close."""
    name: str
    window: tuple[int, int] | None
    """Offset and size in bytes of what can be reached through the device; None for all of it."""


class UnknownBacking(Exception):  # noqa: N818 - no error: it cannot be locked, which is the caller's to say
    """What lies behind a loop device cannot be opened."""


def backings(descriptor: int, *, writable: bool, window: tuple[int, int] | None) -> Iterator[Backing]:
    """
    Yield what lies behind an open block device, from the device on downwards; nothing if it is no loop device.

    `window` is the part of the device that is meant, offset and size in bytes. Raises UnknownBacking if one of them
    cannot be opened, or is no longer what its name says.
    """
    for _ in range(_DEEPEST):
        status = os.fstat(descriptor)
        if not stat.S_ISBLK(status.st_mode):
            return
        device = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}").resolve()
        whole = None
        if (device / "partition").exists():
            window = _within(window, _number(device / "start") * _UNIT, _number(device / "size") * _UNIT)
            device = device.parent
            whole = f"/dev/{device.name}"
        if not (device / "loop/backing_file").exists():
            return
        backing = _open(device, descriptor if whole is None else whole, writable=writable, window=window)
        yield backing
        descriptor, window = backing.descriptor, backing.window


def _within(window: tuple[int, int] | None, start: int, size: int) -> tuple[int, int]:
    """Return where a part of something is that itself begins at `start` and has `size` bytes."""
    return (start, size) if window is None else (start + window[0], window[1])


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _open(device: Path, loop: int | str, *, writable: bool, window: tuple[int, int] | None) -> Backing:
    """Open what is behind a loop device, which is open or has this path."""
    try:
        path = (device / "loop/backing_file").read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
        size = _number(device / "size") * _UNIT
        inode, offset, limit = _status_of(loop)
        # nothing but a file or device is waited for or touched, whatever has come by that name
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK)
    except OSError as error:
        raise UnknownBacking(f"{error.filename or device.name}: {os.strerror(error.errno or 0)}") from None
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) != inode:
        os.close(descriptor)
        raise UnknownBacking(f"{path} is another file now")
    if offset or limit or window:
        window = _within(window, offset, size)
    return Backing(descriptor, path, window)


def _status_of(loop: int | str) -> tuple[tuple[int, int], int, int]:
    """Return which file a loop device is on (device and inode number), from where, and how much of it (0: all)."""
    descriptor = os.dup(loop) if isinstance(loop, int) else os.open(loop, os.O_RDONLY | os.O_NONBLOCK)
    try:
        info = _LOOP_INFO64.unpack(fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size)))
    finally:
        os.close(descriptor)
    encoded, inode, _, offset, limit = info[:5]
    # linux/kdev_t.h, new_encode_dev: 12 bits of the major number between 8 and 12 of the minor one
    device = os.makedev(encoded >> 8 & 0xFFF, encoded & 0xFF | encoded >> 12 & 0xFFF00)
    return (device, inode), offset, limit
