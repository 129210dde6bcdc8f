"""`lukshdrfs unmount`: unmount, and wait until the daemon has flushed and ended."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import select
import time
from collections.abc import Iterator
from functools import partial

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.mounted import mount_at
from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.mounts import (
    ANSWER_LIMIT_S,
    GONE,
    Mount,
    ask_apart,
    ask_daemon,
    describe_holders_apart,
    detach_apart,
    open_daemon,
    other_namespace_apart,
    owner_to_ask,
)

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
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="or the payload, where it is mounted once")
    parser.add_argument(
        "-z", "--lazy", action="store_true", help="if it is in use, take its name away at once; served to the end"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    mount = mount_at(arguments.mountpoint)
    owner = owner_to_ask(mount)
    if owner is None:  # another user's: neither can it be flushed, nor its end waited for
        detach_apart(mount.mountpoint)
        return 0
    asked = ask_apart(partial(ask_daemon, mount.mountpoint), ANSWER_LIMIT_S, owner)
    if GONE in asked.answers:
        detach_apart(mount.mountpoint, lazy=True)  # only the name is left
        return 0
    if not asked.ended:
        return _leave_unanswered(mount, lazy=arguments.lazy)
    if not asked.answers:
        reason = asked.error.strerror if asked.error else "nothing"
        raise DeviceError(f"{mount.mountpoint} does not answer as a mount of lukshdrfs does: {reason}")
    daemon = open_daemon(asked.answers[0])
    try:
        for image in asked.answers[1:]:
            _flush_apart(image, owner)
        if _detached(mount.mountpoint, lazy=arguments.lazy):
            _wait_for_end(mount, daemon)
    finally:
        if daemon is not None:
            os.close(daemon)
    return 0


def _leave_unanswered(mount: Mount, *, lazy: bool) -> int:
    """Deal with a mount whose daemon hangs, or has been stopped."""
    if not lazy:
        raise InUse(f"{mount.mountpoint}: its daemon does not answer, and it stays mounted; --lazy takes its name away")
    detach_apart(mount.mountpoint, lazy=True)
    log.warning("%s: its daemon does not answer; what it has not written yet, it writes when it goes on", mount.source)
    return 0


def _wait_for_end(mount: Mount, daemon: int | None) -> None:
    """Return when the daemon has ended. Raises InUse if that takes too long, or another namespace keeps the mount."""
    if daemon is None:
        log.warning("%s: its daemon cannot be seen from here, and may still be writing", mount.mountpoint)
        return
    deadline = time.monotonic() + PATIENCE_S
    while not select.select([daemon], [], [], NAMESPACES_AFTER_S)[0]:
        if keeper := other_namespace_apart(mount):
            raise InUse(
                f"{mount.mountpoint} is unmounted here, and flushed; {keeper} has it mounted in its own mount namespace"
            )
        if time.monotonic() > deadline:
            raise InUse(f"{mount.mountpoint} is unmounted, but its daemon is still writing; wait for it")


def _detached(mountpoint: str, *, lazy: bool) -> bool:
    """Unmount; return whether that is all, and not only the name that is gone."""
    try:
        detach_apart(mountpoint)
    except InUse as error:
        text = f"{error}: {describe_holders_apart(mountpoint)}"
        if not lazy:
            raise InUse(f"{text}; --lazy takes its name away and serves it to the end") from None
        detach_apart(mountpoint, lazy=True)
        log.warning("%s; it is served until that is done", text)
        return False
    return True


def _flush_apart(image: str, owner: tuple[int, int]) -> None:
    """Have everything on the storage while the mount can still say that it failed."""
    flush = ask_apart(partial(_flush, image), PATIENCE_S, owner)
    if not flush.ended:
        raise InUse(f"{image} is still being flushed after {PATIENCE_S:.0f} s, and stays mounted")
    # without permission, the image is meant for somebody else (`uid=`): it is flushed at the daemon's end
    if flush.error is not None and flush.error.errno != errno.EACCES:
        raise DeviceError(f"{image} cannot be flushed, and stays mounted: {flush.error.strerror}")


def _flush(image: str) -> Iterator[str]:
    descriptor = os.open(image, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    yield "flushed"
