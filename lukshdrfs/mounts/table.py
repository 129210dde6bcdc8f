"""Mounts in the kernel's table, ours among them, and taking one away. Source: umount2(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from dataclasses import dataclass

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.mounts.mountinfo import mount_lines

FILE_SYSTEM_TYPE = "fuse.lukshdrfs"
MOUNT_LIST = "/etc/mtab"
"""Where fusermount3 looks for the mount that it is to take away (libfuse, util/fusermount.c)."""

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
    owner: tuple[int, int] | None = None
    """Whose FUSE file system it is, in the kernel's words: a user's and a group's number."""


def mount_table() -> list[Mount]:
    """Return the mounts of this process's mount namespace, in the order in which they were made."""
    return [Mount(line.mountpoint, line.type, line.source, line.device, _owner(line.options)) for line in mount_lines()]


def our_mounts() -> list[Mount]:
    """Return those mounts of the table that call themselves lukshdrfs."""
    return [mount for mount in mount_table() if mount.type == FILE_SYSTEM_TYPE]


def _owner(options: str) -> tuple[int, int] | None:
    numbers = dict(option.partition("=")[::2] for option in options.split(","))
    try:
        return int(numbers["user_id"]), int(numbers["group_id"])
    except (KeyError, ValueError):
        return None


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
    busy, reason = _umount(mountpoint, lazy=lazy) if os.geteuid() == 0 else _fusermount(mountpoint, lazy=lazy)
    if busy:
        raise InUse(f"{mountpoint} is in use")
    if reason:
        raise DeviceError(f"{mountpoint} cannot be unmounted: {reason}")


def _umount(mountpoint: str, *, lazy: bool) -> tuple[bool, str]:
    """Return whether it is in use, or why else it is still there."""
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    failure = ctypes.get_errno() if _libc.umount2(os.fsencode(mountpoint), flags) != 0 else 0
    return failure == errno.EBUSY, os.strerror(failure) if failure else ""


def _fusermount(mountpoint: str, *, lazy: bool) -> tuple[bool, str]:
    """Do the same as an ordinary user, by libfuse's helper, whose own words are the reason."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="surrogateescape", env=environment, check=False
        )
    except FileNotFoundError:
        raise DeviceError("fusermount3 is not installed; install the package fuse3") from None
    if done.returncode == 0:
        return False, ""
    reason = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    return "busy" in reason.lower(), reason or f"fusermount3 ended with status {done.returncode}"


def mount_list_problem() -> str:
    """Return why libfuse's helper could not unmount for an ordinary user, and the way out; empty if it can."""
    if os.path.exists(MOUNT_LIST):  # noqa: PTH110
        return ""
    remedy = f"ln -sf /proc/self/mounts {MOUNT_LIST}"
    return f"{MOUNT_LIST} is missing, and without it fusermount3 takes no mount away; root makes it by '{remedy}'"
