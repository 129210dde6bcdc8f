"""`lukshdrfs lock`: have mounts stop serving, wipe their keys and go, whoever uses them."""

from __future__ import annotations

import argparse
import logging
import os
import select
import time
from functools import partial

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.mounted import mount_at
from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError, UsageError
from lukshdrfs.mounts import (
    ANSWER_LIMIT_S,
    GONE,
    LOCKED,
    LOCKING,
    Apart,
    Mount,
    detach_apart,
    mount_table,
    our_mounts,
    owner_to_ask,
    request_lock,
)

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long a mount may take from the answer that it locks until it is gone."""
FLUSH_PATIENCE_S = 5.0
"""How long a mount stays at most when its key is wiped; a copy that its daemon does not see stays for good."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "lock",
        help="stop serving at once, wipe the key, unmount",
        description="Lock a mount: what was written and acknowledged is flushed, then every read and write of the "
        "image gives EIO, what the kernel has cached of it is dropped, the key is wiped, and the mount goes, whoever "
        "uses it. Mounts are asked all at once; one that does not answer is named, and holds up no other.",
    )
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT")
    parser.add_argument("--all", action="store_true", help="all mounts of this user; of root, everybody's")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; return when the keys are wiped."""
    if arguments.all == (arguments.mountpoint is not None):
        raise UsageError("name one mountpoint, or take --all")
    if arguments.all:
        mounts = [mount for mount in our_mounts() if owner_to_ask(mount) is not None]
    else:
        mounts = [mount_at(arguments.mountpoint)]
    problems = _lock(mounts)
    for problem in problems[:-1]:
        log.error("%s", problem)
    if problems:
        raise problems[-1]
    return 0


class _Locking:
    """A mount that has been asked to lock."""

    def __init__(self, mount: Mount) -> None:
        """Ask it."""
        owner = owner_to_ask(mount)
        if owner is None:
            raise DeviceError(f"{mount.mountpoint} is another user's mount; it is not locked")
        self.mount = mount
        self.request = Apart(partial(request_lock, mount.mountpoint), owner)
        self.deadline = time.monotonic() + ANSWER_LIMIT_S
        self.said = ""

    def locked(self) -> bool:
        """Return whether it is done. Raises a LukshdrfsError that says why it will not be."""
        name, answers = self.mount.mountpoint, self.request.answers
        if self.mount not in mount_table():
            return True  # the key is wiped before that
        if GONE in answers:
            log.warning("%s: its daemon is gone, and the key with it", name)
            detach_apart(name, lazy=True)
            return True
        if any(answer not in (LOCKING, LOCKED) for answer in answers):
            raise DeviceError(f"{name} is not locked: what serves it is not lukshdrfs")
        if self.request.ended:
            reason = self.request.error.strerror if self.request.error else "it cannot be asked"
            raise DeviceError(f"{name} is not locked: {reason}")
        if answers and self.said != answers[-1]:
            self.said = answers[-1]
            self.deadline = time.monotonic() + (PATIENCE_S if self.said == LOCKING else FLUSH_PATIENCE_S)
        if time.monotonic() > self.deadline:
            if self.said == LOCKED:
                detach_apart(name, lazy=True)
                return True
            if answers:
                raise InUse(f"{name} is not locked yet: its payload does not answer")
            raise InUse(f"{name} is not locked: its daemon does not answer; it will lock when it goes on")
        return False


def _lock(mounts: list[Mount]) -> list[LukshdrfsError]:
    """Have mounts lock, all at the same time; return what is wrong with those that do not."""
    waiting: list[_Locking] = []
    problems: list[LukshdrfsError] = []
    for mount in mounts:
        try:
            waiting.append(_Locking(mount))
        except LukshdrfsError as error:
            problems.append(error)
    table = os.open("/proc/self/mountinfo", os.O_RDONLY)
    try:
        while waiting:
            _wait(table, waiting)
            for locking in list(waiting):
                try:
                    if not locking.locked():
                        continue
                except LukshdrfsError as error:
                    problems.append(error)
                waiting.remove(locking)
                if locking.request.answers:  # what has not been answered goes on asking, to lock when it can
                    locking.request.leave()
    finally:
        os.close(table)
    return problems


def _wait(table: int, waiting: list[_Locking]) -> None:
    """Return when the mount table has changed, a mount has answered, or the first one's time is over."""
    poll = select.poll()
    poll.register(table, select.POLLPRI)
    requests = {locking.request.fileno(): locking.request for locking in waiting if not locking.request.ended}
    for descriptor in requests:
        poll.register(descriptor, select.POLLIN)
    left = min(locking.deadline for locking in waiting) - time.monotonic()
    for descriptor, _ in poll.poll(max(0, int(left * 1000) + 1)):
        if descriptor in requests:
            requests[descriptor].receive()
