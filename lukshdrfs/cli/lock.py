"""`lukshdrfs lock`: have mounts stop serving, wipe their keys and go, whoever uses them."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.unmount import image_of, mount_at
from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError, UsageError
from lukshdrfs.fuse import FILE_SYSTEM_TYPE, LOCK_SIGNAL, Mount, detach, find_mount, mount_table

log = logging.getLogger(__name__)

PATIENCE_S = 10.0


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "lock",
        help="stop serving at once, wipe the key, unmount",
        description="Lock a mount: what was written and acknowledged is flushed, then every read and write of the "
        "image gives EIO, what the kernel has cached of it is dropped, the key is wiped, and the mount goes, whoever "
        "uses it.",
    )
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT")
    parser.add_argument("--all", action="store_true", help="all mounts of this user; of root, everybody's")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; return when the keys are wiped."""
    if arguments.all == (arguments.mountpoint is not None):
        raise UsageError("name one mountpoint, or take --all")
    if not arguments.all:
        _lock(mount_at(arguments.mountpoint))
        return 0
    problems: list[LukshdrfsError] = []
    for mount in (mount for mount in mount_table() if mount.type == FILE_SYSTEM_TYPE):
        try:
            _lock(mount)
        except LukshdrfsError as error:
            problems.append(error)
    for problem in problems[:-1]:
        log.error("%s", problem)
    if problems:
        raise problems[-1]
    return 0


def _lock(mount: Mount) -> None:
    """Ask a mount's daemon to lock, and wait until its mount is gone: the key is wiped before that."""
    try:
        daemon = os.pidfd_open(int(os.getxattr(image_of(mount.mountpoint), "user.lukshdrfs.pid")))
    except PermissionError:
        raise DeviceError(f"{mount.mountpoint} is another user's mount; it is not locked") from None
    except (OSError, ValueError):
        log.warning("%s: its daemon is gone, and the key with it", mount.mountpoint)
        return
    try:
        signal.pidfd_send_signal(daemon, LOCK_SIGNAL)
        _wait_until_gone(mount, daemon)
    except PermissionError:
        raise DeviceError(f"{mount.mountpoint} is another user's mount; it is not locked") from None
    finally:
        os.close(daemon)


def _wait_until_gone(mount: Mount, daemon: int) -> None:
    table = os.open("/proc/self/mountinfo", os.O_RDONLY)
    try:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        poll.register(daemon, select.POLLIN)
        while find_mount(mount.mountpoint) == mount:
            ready = {descriptor for descriptor, _ in poll.poll(PATIENCE_S * 1000)}
            if daemon in ready and find_mount(mount.mountpoint) == mount:
                detach(mount.mountpoint, lazy=True)  # it ended in a hurry, and its key with it
                return
            if not ready:
                raise InUse(f"{mount.mountpoint} is not locked yet: its payload does not answer")
    finally:
        os.close(table)
