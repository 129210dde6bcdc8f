"""The kernel's mount table, and taking a mount away. Sources: proc(5), /proc/PID/mountinfo; umount2(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lukshdrfs.errors import DeviceError, InUse

FILE_SYSTEM_TYPE = "fuse.lukshdrfs"

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # linux/fs.h


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the mount table."""

    mountpoint: str
    type: str
    source: str
    device: str
    """`major:minor`; no two mounted file systems have the same."""


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    data = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(field))
    return os.fsdecode(data)


def mount_table() -> list[Mount]:
    """Return the mounts of this process's mount namespace, in the order in which they were made."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, super_fields = os.fsdecode(line).partition(" - ")
        _, _, device, _, mountpoint = fields.split(" ")[:5]
        kind, source = super_fields.split(" ")[:2]
        mounts.append(Mount(_unescape(mountpoint), kind, _unescape(source), device))
    return mounts


def find_mount(path: str | os.PathLike[str]) -> Mount | None:
    """Return the topmost mount at a path, None if nothing is mounted there. Does not touch the file system on it."""
    # the last part stays as it is: to resolve it could wait for a daemon that is gone
    parent, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    wanted = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118
    found = [mount for mount in mount_table() if mount.mountpoint == wanted]
    return found[-1] if found else None


def detach(mountpoint: str, *, lazy: bool = False) -> None:
    """
    Unmount; with `lazy`, take the name away at once and the rest when the last user is done.

    Raises InUse if somebody uses it, DeviceError if it cannot be unmounted for another reason.
    """
    failure = _umount(mountpoint, lazy=lazy) if os.geteuid() == 0 else _fusermount(mountpoint, lazy=lazy)
    if failure == errno.EBUSY:
        raise InUse(f"{mountpoint} is in use")
    if failure:
        raise DeviceError(f"{mountpoint} cannot be unmounted: {os.strerror(failure)}")


def _umount(mountpoint: str, *, lazy: bool) -> int:
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    return ctypes.get_errno() if _libc.umount2(os.fsencode(mountpoint), flags) != 0 else 0


def _fusermount(mountpoint: str, *, lazy: bool) -> int:
    """Unmount as an ordinary user, by libfuse's helper; return an errno."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise DeviceError("fusermount3 is not installed; install the package fuse3") from None
    if done.returncode == 0:
        return 0
    return errno.EBUSY if "busy" in done.stderr else errno.EPERM
