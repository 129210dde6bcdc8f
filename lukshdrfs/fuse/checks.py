"""Whether a volume can be mounted here: the kernel's FUSE, and the mountpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.mounts.table import Mount, find_mount, mount_list_problem

DEVICE = "/dev/fuse"


CONFIGURATION = Path("/etc/fuse.conf")


def check_fuse(kernel_options: tuple[str, ...] = ()) -> None:
    """Raise DeviceError if this user cannot mount FUSE file systems here, with the way out."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        raise DeviceError(
            f"{DEVICE}: {os.strerror(error.errno or 0)}; FUSE is needed ('modprobe fuse', or the container's --device)"
        ) from None
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise DeviceError("fusermount3 is not installed; install the package fuse3")
    if problem := mount_list_problem():
        raise DeviceError(problem)
    others = [option for option in kernel_options if option in ("allow_other", "allow_root")]
    if others and not _user_allow_other():
        raise DeviceError(f"{others[0]} needs the line 'user_allow_other' in {CONFIGURATION}")


def _user_allow_other() -> bool:
    try:
        lines = CONFIGURATION.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def check_not_mounted(mountpoint: str) -> None:
    """Raise InUse if something is mounted there. Does not touch it: its daemon may be gone, or hang."""
    if mounted := find_mount(mountpoint):
        raise InUse(f"mountpoint {mountpoint} is in use: {mounted.source} ({mounted.type}) is mounted there")


def check_mountpoint(mountpoint: str) -> None:
    """
    Raise DeviceError unless a path is an empty directory or a regular file that can be mounted over.

    Raises InUse if something is mounted there already.
    """
    check_not_mounted(mountpoint)
    path = Path(mountpoint)
    try:
        if path.is_dir():
            if any(path.iterdir()):
                raise DeviceError(f"mountpoint {mountpoint} is not empty; take an empty directory")
        elif not path.stat().st_mode & 0o100000 or not path.is_file():
            raise DeviceError(f"mountpoint {mountpoint} is neither a directory nor a regular file")
    except OSError as error:
        raise DeviceError(f"mountpoint {mountpoint}: {os.strerror(error.errno or 0)}") from None


def is_there(mounted: Mount | None) -> bool:
    """Whether a mount is still the topmost one at its place: another one there is none of our business."""
    return mounted is not None and find_mount(mounted.mountpoint) == mounted
