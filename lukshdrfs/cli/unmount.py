"""`lukshdrfs unmount`: unmount, and wait until the daemon has flushed and ended."""

from __future__ import annotations

import argparse
import errno
import os
import select

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.fuse import FILE_SYSTEM_TYPE, detach, find_mount

PATIENCE_S = 120.0


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("unmount", help="unmount and wait until everything is written")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    mount = find_mount(arguments.mountpoint) or find_mount(os.path.realpath(arguments.mountpoint))
    if mount is None or mount.type != FILE_SYSTEM_TYPE:
        raise DeviceError(f"{arguments.mountpoint} is not a mountpoint of lukshdrfs")
    try:
        daemon = _daemon_of(mount.mountpoint)
    except PermissionError:  # another user's: its end cannot be waited for
        detach(mount.mountpoint)
        return 0
    if daemon is None:  # its daemon is gone; only the name is left
        detach(mount.mountpoint, lazy=True)
        return 0
    try:
        detach(mount.mountpoint)
        if not select.select([daemon], [], [], PATIENCE_S)[0]:
            raise InUse(f"{arguments.mountpoint} is unmounted, but its daemon is still writing; wait for it")
    finally:
        os.close(daemon)
    return 0


def _daemon_of(mountpoint: str) -> int | None:
    """Return a descriptor that becomes readable when the daemon ends (pidfd_open(2)), None if it is gone."""
    try:
        image = mountpoint
        if os.path.isdir(mountpoint):  # noqa: PTH112
            image = os.path.join(mountpoint, os.listdir(mountpoint)[0])  # noqa: PTH118, PTH208
        return os.pidfd_open(int(os.getxattr(image, "user.lukshdrfs.pid")))
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ESRCH, errno.ECONNABORTED):
            return None
        raise
