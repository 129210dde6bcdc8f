"""
What a mount is asked by its owner, besides what files are asked.

A mount is asked through itself, by attributes that no list has. A process number that a mount states may be forged, and
no signal is ever sent to it; but whoever answers here is whoever serves the mount. Reading an attribute of the `system`
namespace takes no permission on the file and no writable mount (xattr(7)), so the daemon looks who asks.

Sources: proc(5) (`/proc/PID/stat`, field 22), pid_namespaces(7), pidfd_open(2). A FUSE file system lets in its owner
alone, unless `allow_other` is given (the kernel's Documentation/filesystems/fuse.rst).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError
from lukshdrfs.mounts.apart import ask_apart
from lukshdrfs.mounts.table import Mount, detach

PROPERTY_PREFIX = "user.lukshdrfs."
"""Of the names under which the image says what it is, as extended attributes."""
LOCK_REQUEST = "system.lukshdrfs.lock"
"""Asking for it, at the mountpoint, locks the mount."""
LOCKING = "locking"
"""The answer: it has begun."""
LOCKED = "locked"
"""The answer: the key is wiped."""
DAEMON_REQUEST = "system.lukshdrfs.daemon"
"""Answered with what tells the daemon's process from all others."""
REQUESTS = {LOCK_REQUEST.encode(), DAEMON_REQUEST.encode()}
GONE = "gone"
"""What is said of a mount that no daemon serves any more."""

ANSWER_LIMIT_S = 5.0
"""How long a daemon may take to say anything at all."""
DETACH_LIMIT_S = 30.0
_ASK_AGAIN_S = 0.2

Owner = tuple[int, int]
"""A user's and a group's number."""


def owner_to_ask(mount: Mount) -> Owner | None:
    """
    Return as whom a mount may be asked; None if it is another user's.

    What root asks of another user's mount is asked as that user: whoever serves it gets nothing of root's to act on.
    """
    if mount.owner is None or os.geteuid() not in (0, mount.owner[0]):
        return None
    return mount.owner


def identity() -> str:
    """Return what tells this process from all others: number, time of start, and the namespace that has the number."""
    try:
        return f"{os.getpid()} {_started(os.getpid())} {_pid_namespace()}"
    except OSError:  # without /proc
        return ""


def open_daemon(stated: str) -> int | None:
    """
    Return a pidfd of the process that somebody states to be; None where that is no process that is known here.

    It is good for waiting for the process's end, and for nothing else.
    """
    pid, started, namespace = [*stated.split(" "), "", "", ""][:3]
    try:
        descriptor = os.pidfd_open(int(pid))
    except (OSError, ValueError, OverflowError):
        return None
    with contextlib.suppress(OSError):
        here = namespace == _pid_namespace() and started == _started(int(pid))
        # it is alive, so what was looked at was not a later process by the same number
        if here and not select.select([descriptor], [], [], 0)[0]:
            return descriptor
    os.close(descriptor)
    return None


def _started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the target is a text


def request_lock(mountpoint: str) -> Iterator[str]:
    """Ask a mount to lock, again and again until it is gone; yield each answer, at last perhaps `GONE`."""
    while True:
        try:
            answer = os.getxattr(mountpoint, LOCK_REQUEST, follow_symlinks=False)
        except OSError as error:
            yield from _gone(error)
            return
        yield answer.decode("ascii", "replace")
        time.sleep(_ASK_AGAIN_S)


def ask_daemon(mountpoint: str) -> Iterator[str]:
    """Ask who serves a mount, and which file it shows; yield `identity` of the daemon and the image, or `GONE`."""
    try:
        yield os.getxattr(mountpoint, DAEMON_REQUEST, follow_symlinks=False).decode("ascii", "replace")
        yield image_of(mountpoint)
    except OSError as error:
        yield from _gone(error)


def _gone(error: OSError) -> Iterator[str]:
    if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
        raise error
    yield GONE


def image_of(mountpoint: str) -> str:
    """Return the one file of a mount. Raises ValueError if there is another number of them."""
    if not stat.S_ISDIR(os.stat(mountpoint).st_mode):  # noqa: PTH116
        return mountpoint
    (name,) = os.listdir(mountpoint)  # noqa: PTH208
    return os.path.join(mountpoint, name)  # noqa: PTH118


def detach_apart(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount, as `detach` does; raise InUse as well if that takes too long."""

    def work() -> Iterator[tuple[bool, str]]:
        try:
            detach(mountpoint, lazy=lazy)
        except LukshdrfsError as error:
            yield isinstance(error, InUse), str(error)

    done = ask_apart(work, DETACH_LIMIT_S)
    if not done.ended:
        raise InUse(f"{mountpoint} is not unmounted yet: its daemon does not answer")
    for busy, message in done.answers:
        raise (InUse if busy else DeviceError)(message)
