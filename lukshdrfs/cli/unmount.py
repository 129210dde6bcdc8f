"""`lukshdrfs unmount`: unmount, and wait until the daemon has flushed and ended."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import stat
import time

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.fuse import FILE_SYSTEM_TYPE, Mount, describe_holders, detach, find_mount, other_namespace

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
NAMESPACES_AFTER_S = 2.0
"""After so long, look whether a copy of the mount keeps the daemon alive."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "unmount",
        aliases=["umount"],
        help="unmount and wait until everything is written",
        description="Unmount, and return when everything is on the payload's storage and the daemon has ended. If the "
        "image is in use, say who holds it.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "-z", "--lazy", action="store_true", help="if it is in use, take its name away at once; served to the end"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    mount = mount_at(arguments.mountpoint)
    try:
        image = image_of(mount.mountpoint)
        daemon = os.pidfd_open(int(os.getxattr(image, "user.lukshdrfs.pid")))
    except PermissionError:  # another user's: neither can it be flushed, nor its end waited for
        detach(mount.mountpoint)
        return 0
    except ValueError:
        raise DeviceError(f"{arguments.mountpoint} does not show what a mount of lukshdrfs shows") from None
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ESRCH, errno.ECONNABORTED):
            raise DeviceError(f"{arguments.mountpoint}: {os.strerror(error.errno or 0)}") from None
        detach(mount.mountpoint, lazy=True)  # its daemon is gone; only the name is left
        return 0
    try:
        _flush(image)
        if not _detached(mount.mountpoint, lazy=arguments.lazy):
            return 0
        _wait_for_end(arguments.mountpoint, mount, daemon)
    finally:
        os.close(daemon)
    return 0


def _wait_for_end(name: str, mount: Mount, daemon: int) -> None:
    """Return when the daemon has ended. Raises InUse if that takes too long, or another namespace keeps the mount."""
    deadline = time.monotonic() + PATIENCE_S
    while not select.select([daemon], [], [], NAMESPACES_AFTER_S)[0]:
        if keeper := other_namespace(mount):
            raise InUse(f"{name} is unmounted here, and flushed; {keeper} has it mounted in its own mount namespace")
        if time.monotonic() > deadline:
            raise InUse(f"{name} is unmounted, but its daemon is still writing; wait for it")


def _detached(mountpoint: str, *, lazy: bool) -> bool:
    """Unmount; return whether that is all, and not only the name that is gone."""
    try:
        detach(mountpoint)
    except InUse as error:
        text = f"{error}: {describe_holders(mountpoint)}"
        if not lazy:
            raise InUse(f"{text}; --lazy takes its name away and serves it to the end") from None
        detach(mountpoint, lazy=True)
        log.warning("%s; it is served until that is done", text)
        return False
    return True


def mount_at(name: str) -> Mount:
    """Return the mount at a path, or at what the path links to. Raises DeviceError if it is none of ours."""
    mount = find_mount(name) or find_mount(os.path.realpath(name))
    if mount is None or mount.type != FILE_SYSTEM_TYPE:
        raise DeviceError(f"{name} is not a mountpoint of lukshdrfs")
    return mount


def image_of(mountpoint: str) -> str:
    """Return the one file of a mount. Raises ValueError if there is another number of them."""
    if not stat.S_ISDIR(os.stat(mountpoint).st_mode):  # noqa: PTH116
        return mountpoint
    (name,) = os.listdir(mountpoint)  # noqa: PTH208
    return os.path.join(mountpoint, name)  # noqa: PTH118


def _flush(image: str) -> None:
    """Have everything on the storage while the mount can still say that it failed."""
    try:
        descriptor = os.open(image, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise DeviceError(f"{image} cannot be flushed, and stays mounted: {reason}") from None
