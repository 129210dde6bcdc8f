"""
Whether a header is still where it was read from, and hearing of it when it goes.

A header goes when its file is removed or renamed, its file system unmounted, or its device taken away. The kernel says
so by inotify, by changes of the mount table, and by uevents; each of them is only a reason to look. Nothing is polled.
Sources: inotify(7); proc(5), /proc/PID/mountinfo ("poll"); netlink(7), NETLINK_KOBJECT_UEVENT; the kernel's
Documentation/ABI for /sys/dev/block and /sys/block/loopN/loop.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import socket
import stat
from pathlib import Path

from lukshdrfs.errors import DeviceError

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)

_IN_ATTRIB, _IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF, _IN_UNMOUNT = (
    4,
    0x40,
    0x200,
    0x400,
    0x800,
    0x2000,
)
_ITSELF = _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT  # ATTRIB: a link less, though it is held open
_FOLDER = _IN_DELETE | _IN_MOVED_FROM | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_UNMOUNT
_NETLINK_KOBJECT_UEVENT, _UEVENT_GROUP = 15, 1  # linux/netlink.h


class HeaderPresence:
    """Watches one header, for one `wait_gone`."""

    def __init__(self, path: str) -> None:
        """Begin to watch an absolute path. Raises DeviceError if nothing is there, or no file or device."""
        self._path = path
        self._identity = self._look()
        if self._identity is None:
            raise DeviceError(f"header {path} is not there, so its removal cannot be watched for")
        self._events = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._events < 0:
            reason = os.strerror(ctypes.get_errno())
            raise DeviceError(f"header {path} cannot be watched: {reason} (see fs.inotify.max_user_instances)")
        self._watch()
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._uevents = _open_uevents()
        self._ours, self._theirs = socket.socketpair()

    def _look(self) -> tuple[str, int] | None:
        """Return what tells this header's place from another one; None if it is gone."""
        try:
            status = os.stat(self._path)  # noqa: PTH116
        except OSError:
            return None
        if stat.S_ISBLK(status.st_mode):
            return ("device", status.st_rdev) if _device_is_there(status.st_rdev) else None
        return ("file", status.st_dev) if stat.S_ISREG(status.st_mode) and _medium_is_there(status.st_dev) else None

    def _watch(self) -> None:
        """Watch the file, and all folders on the way to it."""
        path = Path(self._path)
        _libc.inotify_add_watch(self._events, os.fsencode(path), _ITSELF)
        for folder in path.parents:
            _libc.inotify_add_watch(self._events, os.fsencode(folder), _FOLDER)

    def wait_gone(self) -> bool:
        """Return True when the header is gone, False when `cancel` is called before. Blocks; call it once."""
        try:
            return self._wait_gone()
        finally:
            self._close()

    def _wait_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        poll.register(self._mounts, select.POLLPRI)
        poll.register(self._ours, select.POLLIN)
        if self._uevents:
            poll.register(self._uevents, select.POLLIN)
        while self._look() == self._identity:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._ours.fileno() in ready:
                return False
            self._take(ready)
            self._watch()  # it may be another file of that name now, put there in one step: still a header
        return True

    def _take(self, ready: set[int]) -> None:
        if self._events in ready:
            os.read(self._events, 1 << 16)
        if self._uevents and self._uevents.fileno() in ready:
            try:
                self._uevents.recv(1 << 16)
            except OSError as error:  # it overflowed: a reason to look, too
                log.debug("uevents: %s", error)

    def cancel(self) -> None:
        """End a `wait_gone` in another thread; nothing happens if it has ended."""
        self._theirs.close()

    def _close(self) -> None:
        os.close(self._events)
        os.close(self._mounts)
        self._ours.close()
        if self._uevents:
            self._uevents.close()


def _open_uevents() -> socket.socket | None:
    """Return a socket that hears of devices coming and going; None where that is not allowed."""
    try:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        events.bind((0, _UEVENT_GROUP))
    except OSError as error:
        log.debug("uevents cannot be heard: %s", error)
        return None
    return events


def _device_is_there(device: int) -> bool:
    """Whether a block device exists, and has something in it: a loop device without a file has not."""
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    try:
        return int((entry / "size").read_text(encoding="ascii")) > 0
    except (OSError, ValueError):
        return False


def _medium_is_there(device: int) -> bool:
    """Whether the device that a file system is on exists; a file system without one (tmpfs, NFS) is taken for there."""
    return os.major(device) == 0 or _device_is_there(device)
