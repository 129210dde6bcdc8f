"""
Whether the kernel uses a file or block device: mounted, as swap, below a mapping or RAID, through a loop device.

A whole device that nobody shares is best opened with O_EXCL, which the kernel refuses in all of these cases. This is
for what O_EXCL does not tell: files of which a loop device makes a disk, and windows of devices whose other parts may
be in use. Only what this mount namespace shows can be seen. Sources: proc(5), /proc/PID/mountinfo and /proc/swaps; the
kernel's Documentation/ABI/stable/sysfs-block.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lukshdrfs.errors import InUse
from lukshdrfs.mounts.mountinfo import mount_lines, unescaped

_SYSFS_SECTOR = 512


def check_unused(descriptor: int, name: str, window: tuple[int, int] | None = None) -> None:
    """
    Raise InUse, with how it is used, if the kernel uses an open file or device, or any part of a window of it.

    `name` says what it is and how it is called. `window` is its offset and size in bytes.
    """
    status = os.fstat(descriptor)
    use = _use_of_device(status.st_rdev, window) if stat.S_ISBLK(status.st_mode) else _use_of_file(status, window)
    if use:
        raise InUse(f"{name} is in use: {use}")


def _use_of_file(status: os.stat_result, window: tuple[int, int] | None) -> str:
    for path in _swap_names():
        if _is_same(path, status):
            return "it is swap"
    for loop in Path("/sys/block").glob("loop*"):
        backing = _first_line(loop / "loop/backing_file")
        if not backing or not _is_same(_absolute(backing), status):
            continue
        inside = None
        if window is not None:
            inside = (window[0] - int(_first_line(loop / "loop/offset") or 0), window[1])
            if not _overlap(inside, (0, int(_first_line(loop / "size") or 0) * _SYSFS_SECTOR)):
                continue
        if use := _use_of_disk(loop, inside):
            return f"{use}, through /dev/{loop.name}"
        if window is None and _is_claimed(Path("/dev") / loop.name):
            return f"another program has /dev/{loop.name}, which is made of it, to itself"
    return ""


def _use_of_device(number: int, window: tuple[int, int] | None) -> str:
    disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return _use_of_disk(disk, window) if disk.exists() else ""


def _use_of_disk(disk: Path, window: tuple[int, int] | None = None) -> str:
    """Return how a disk is used, or one of those of its partitions that the window touches; empty if it is not."""
    devices = [disk]
    for partition in disk.glob("*/partition"):
        start = int(_first_line(partition.parent / "start") or 0) * _SYSFS_SECTOR
        size = int(_first_line(partition.parent / "size") or 0) * _SYSFS_SECTOR
        if window is None or _overlap(window, (start, size)):
            devices.append(partition.parent)
    for device in devices:
        number = _first_line(device / "dev")
        holders = sorted(holder.name for holder in device.glob("holders/*"))
        if mountpoint := _mountpoint_of(number):
            return f"it is mounted at {mountpoint}"
        if any(_number_of(path) == number for path in _swap_names()):
            return "it is swap"
        if holders:
            return f"{', '.join(holders)} is made of it"
    return ""


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two parts, offset and size in bytes, have bytes in common."""
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]


def _mountpoint_of(number: str) -> str:
    for mount in mount_lines():
        # btrfs has a device number of its own, and a source that tells; nothing but a device is looked at
        if mount.device == number or (mount.source.startswith("/dev/") and _number_of(mount.source) == number):
            return mount.mountpoint
    return ""


def _swap_names() -> Iterator[str]:
    try:
        lines = Path("/proc/swaps").read_bytes().splitlines()[1:]
    except OSError:
        return
    yield from (unescaped(os.fsdecode(line.split(b" ")[0].split(b"\t")[0])) for line in lines)


def _absolute(backing: str) -> str:
    return backing.removesuffix(" (deleted)")


def _number_of(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - bytes that the kernel gave
    except OSError:
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" if stat.S_ISBLK(status.st_mode) else ""


def _is_same(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)  # noqa: PTH116
    except OSError:
        return False


def _is_claimed(device: Path) -> bool:
    """Whether somebody has a device exclusively, in whatever mount namespace; as far as we may ask."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _first_line(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes()).split("\n", 1)[0]
    except OSError:
        return ""
