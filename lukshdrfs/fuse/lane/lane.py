"""
The fast lane from Python's side: put it in between the kernel and libfuse, hear of its end, end it.

While it is there, what libfuse takes for /dev/fuse is a socket, and lane.c's threads read the real one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

import trio

from lukshdrfs.errors import DeviceError
from lukshdrfs.fuse.checks import DEVICE
from lukshdrfs.native import ffi, lib
from lukshdrfs.volume import NativeVolume

log = logging.getLogger(__name__)

STOP_PATIENCE_MS = 70_000
"""Longer than a request that waits for a server that is away: twice, for parts of blocks are read first."""
SMALLEST_REQUEST = 1 << 16
HEAD = 4096
"""Bytes at most of what comes before a request's data."""
_TROUBLES = {
    lib.VOLUME_READING: "payload: reading at byte {offset}: {error}",
    lib.VOLUME_WRITING: "payload: writing at byte {offset}: {error}",
    lib.VOLUME_FLUSHING: "payload: flushing: {error}",
    lib.VOLUME_ALLOCATING: "payload: allocating at byte {offset}: {error}",
    lib.VOLUME_CUT_OFF: "payload ends at byte {offset}; it was cut off while in use",
    lib.VOLUME_CIPHER: "the cipher failed at byte {offset} of the payload: {error}",
    lib.LANE_DEVICE: f"{DEVICE}: {{error}}; the mount ends",
    lib.LANE_TOO_LONG: "libfuse's answer to a request is longer than any known one",
}


def fuse_descriptors() -> set[int]:
    """Return this process's descriptors of /dev/fuse."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = entry.readlink()
        except OSError:
            continue  # the directory's own
        if str(target) == DEVICE:
            found.add(int(entry.name))
    return found


def check_splice() -> None:
    """
    Raise DeviceError if splice(2) does not take a whole message from a socket: so libfuse reads requests.

    It does since sockets can be spliced from at all; but without it, every mount would hang.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver, sender = os.pipe()
    try:
        here.send(b"request")
        here.send(b"next")
        os.set_blocking(sender, False)
        there.setblocking(False)
        first = _splice(there.fileno(), sender)
        if first != len(b"request") or os.read(receiver, 64) != b"request":
            raise DeviceError("splice(2) does not keep the messages of a socket apart on this kernel")
    except OSError as error:
        raise DeviceError(f"splice(2) from a socket: {error.strerror}") from None
    finally:
        here.close()
        there.close()
        os.close(receiver)
        os.close(sender)


def _splice(source: int, target: int) -> int:
    return os.splice(source, target, 1 << 16)


def _room_for_requests(*ends: socket.socket) -> int:
    """Have sockets hold large messages, if the system allows that; return how much data a request may have, bytes."""
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * lib.lane_largest_request())
    room = min(end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for end in ends)
    largest: int = lib.lane_largest_request()
    while largest > SMALLEST_REQUEST and largest + HEAD > room // 2:
        largest //= 2
    return largest


class FastLane:
    """The running lane. Start it between pyfuse3's `init` and `main`; stop it before the volume is closed."""

    def __init__(self, volume: NativeVolume | None, descriptor: int, size: int, workers: int) -> None:
        """
        Take over `descriptor`, which is libfuse's of /dev/fuse. `workers` requests are served at once.

        Without `volume`, libfuse serves everything, and the lane sees to it that what the kernel has cached of the
        image, which has `size` bytes, is in step with what is written past its cache.

        Raises DeviceError if that is not possible; everything is as it was then.
        """
        check_splice()
        self._volume = volume
        self._device = os.dup(descriptor)
        fcntl.fcntl(self._device, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        os.set_blocking(self._device, True)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        largest = lib.lane_largest_request() if volume else _room_for_requests(self._ours, theirs)
        self._events, self._told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        error = ffi.new("int *")
        self._lane = lib.lane_start(self._configuration(size, workers if volume else 0, largest), error)
        if self._lane == ffi.NULL:
            theirs.close()
            self._close()
            raise DeviceError(f"the fast lane cannot be started: {os.strerror(error[0])}")
        # libfuse reads nothing before pyfuse3.main() runs; what the lane has sent until then waits in the socket
        os.dup2(theirs.fileno(), descriptor, inheritable=False)
        theirs.close()

    def _configuration(self, size: int, workers: int, largest: int) -> object:
        configuration = ffi.new("struct lane_config *")
        configuration.device = self._device
        configuration.libfuse = self._ours.fileno()
        configuration.events = self._told.fileno()
        configuration.confined = True
        configuration.workers = workers
        configuration.size = size
        configuration.largest_request = largest
        configuration.page_size = os.sysconf("SC_PAGESIZE")
        configuration.volume = self._volume.native if self._volume else ffi.NULL
        return configuration

    def set_size(self, size: int) -> None:
        """Say where the volume ends now, in bytes. The payload must reach that far."""
        if self._volume:
            self._volume.set_size(size)

    @property
    def requests(self) -> int:
        """How many reads, writes and syncs there have been so far."""
        return int(lib.lane_requests(self._lane)) if self._lane != ffi.NULL else 0

    def lock(self, patience_ms: int) -> bool:
        """
        Answer all data requests with EIO from now on; return whether nothing uses ciphers and payload any more.

        Blocks until then, or for so many milliseconds. The threads' buffers are wiped.
        """
        return self._lane == ffi.NULL or bool(lib.lane_lock(self._lane, patience_ms))

    def forget_cached(self, patience_ms: int) -> bool:
        """Have the kernel drop what it has cached of the image; return whether it has within so many milliseconds."""
        return self._lane == ffi.NULL or bool(lib.lane_forget_cached(self._lane, patience_ms))

    async def wait_ended(self) -> None:
        """Return when the kernel has no more requests, for the file system is unmounted; log errors until then."""
        events = trio.socket.from_stdlib_socket(self._events)
        events_left = True
        while events_left:
            message = await events.recv(ffi.sizeof("struct lane_event"))
            events_left = bool(message)
            if events_left:
                event = ffi.new("struct lane_event *")
                ffi.memmove(event, message, len(message))
                error = os.strerror(event.error or errno.EIO)
                log.error(_TROUBLES[event.trouble].format(offset=event.offset, error=error))

    def stop(self) -> None:
        """
        Answer what was begun, and end all threads. The file system serves nothing after that.

        If requests hang at the payload, the process ends: what they use cannot be closed.
        """
        if self._lane != ffi.NULL:
            lane, self._lane = self._lane, ffi.NULL
            if not lib.lane_stop(lane, STOP_PATIENCE_MS):
                log.error("requests hang at the payload; the daemon ends at once")
                os._exit(1)
            self._close()

    def _close(self) -> None:
        os.close(self._device)
        self._ours.close()
        self._told.close()
        self._events.close()
