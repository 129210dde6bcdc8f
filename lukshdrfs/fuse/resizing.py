"""
Making the volume longer or shorter while it is mounted, one change at a time.

The kernel holds the image's inode lock while it waits for a truncate(2), and every writer waits for that lock. So what
takes long is not done there: a truncate lengthens by little or not at all, and the mount's owner asks for more by an
extended attribute of the mountpoint, which is answered at once. What is asked for is done by a task, which fills the
new part while others read and write; reading the attribute tells how far it is. Names in the `system` name space need
no permission on a file to be set (xattr(7)), so who asks is looked at here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pyfuse3
import trio

from lukshdrfs.errors import InUse, LukshdrfsError, UsageError
from lukshdrfs.fuse.lane.lane import FastLane
from lukshdrfs.mounts.resize_request import Wish
from lukshdrfs.volume import Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_TRUNCATE = 64 << 20
"""Bytes by which a truncate lengthens, at most: what is written within a moment."""


class InThread(Protocol):
    """Does work with the payload in a thread. Raises FUSEError with EIO once the mount is locked."""

    async def __call__(self, work: Callable[..., T], *args: object, limiter: trio.CapacityLimiter | None = None) -> T:
        """Return what the work does."""


class Resizing:
    """Changes of the volume's size, by whoever asks for them."""

    def __init__(self, volume: Volume, image: pyfuse3.InodeT, in_thread: InThread, locked: Callable[[], bool]) -> None:
        """Take how work is done, and how to know that the mount is locked."""
        self._volume = volume
        self._image = image
        self._in_thread = in_thread
        self._locked = locked
        self.lane: FastLane | None = None
        """Who else has to know where the volume ends."""
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)  # those who read and write have theirs for themselves
        self._sender, self._wishes = trio.open_memory_channel[Wish](1)
        self._progress: dict[str, Any] = {"state": "none"}
        self._current = ""
        """The id of the last request, until it is taken back."""
        self._said = 0
        """By how many bytes the payload was longer than the volume when somebody was last told."""

    async def truncate(self, size: int) -> None:
        """Have another size for truncate. Raises PayloadError; FUSEError: EBUSY meanwhile, EFBIG if it takes long."""
        if self._busy:
            raise pyfuse3.FUSEError(errno.EBUSY)
        if size - self._volume.size > LARGEST_TRUNCATE:
            log.warning(
                "the image was to grow from %d to %d bytes by truncate, for which all who write to it would have to "
                "wait: 'lukshdrfs resize' does it while they go on",
                self._volume.size,
                size,
            )
            raise pyfuse3.FUSEError(errno.EFBIG)
        async with self._turn:
            if self.lane and size < self._volume.size:  # so that the lane never reads past the payload's end
                self.lane.set_size(size)
            try:
                await self._in_thread(self._volume.resize, size)
            finally:
                self._tell_lane()

    async def refresh(self) -> None:
        """Notice that the payload has become longer or shorter, and tell the kernel."""
        async with self._turn:
            before = self._volume.size
            try:
                await self._in_thread(self._volume.refresh_size)
            except (LukshdrfsError, OSError, pyfuse3.FUSEError) as error:  # FUSEError: it is locked
                log.error("the payload's size: %s", error)  # noqa: TRY400 - of the storage, not of the program
            self._tell_lane()
            if self._volume.size != before:
                self._say_refreshed(before, self._volume.size)
                await self._tell_kernel()

    @staticmethod
    def _say_refreshed(before: int, now: int) -> None:
        if now > before:
            log.warning(
                "the volume has %d bytes now, not %d; the new ones are what the payload has there, and no zeros: "
                "'lukshdrfs resize' would have filled them",
                now,
                before,
            )
        else:
            log.error("the payload was cut off: of the volume's %d bytes, only %d are left", before, now)

    def look(self) -> None:
        """Say so, once, if somebody else has made the payload longer or shorter. In a thread."""
        extra = 0 if self._busy or self._volume.read_only else self._volume.unseen()
        if extra == self._said:
            return
        self._said = extra
        if extra > 0:
            log.warning(
                "the payload has room for %d bytes more than the volume has: 'lukshdrfs resize' fills them with zeros "
                "and takes them in",
                extra,
            )
        elif extra < 0:
            log.error(
                "the payload was cut off: the last %d bytes of the volume are gone, and give EIO; 'lukshdrfs resize' "
                "has the volume end where the payload does",
                -extra,
            )

    @property
    def _busy(self) -> bool:
        return self._turn.locked() or self._progress["state"] == "running"

    def ask(self, user: int, text: bytes) -> None:
        """Take a request. Raises FUSEError: EPERM for another user than the owner and root, EBUSY; UsageError."""
        if user not in (0, os.getuid()):
            raise pyfuse3.FUSEError(errno.EPERM)
        wish = Wish.parse(text)
        if wish.cancel:
            self._current = "" if wish.id == self._current else self._current
            return
        if self._busy:
            raise pyfuse3.FUSEError(errno.EBUSY)
        self._current = wish.id
        self._progress = {"state": "running", "done": 0, "total": 0}
        self._sender.send_nowait(wish)

    def answer(self) -> bytes:
        """Return how far the last request is."""
        return json.dumps({**self._progress, "size": self._volume.size}).encode()

    async def serve(self) -> None:
        """Do what is asked for, one after the other, until the mount ends."""
        async for wish in self._wishes:
            async with self._turn:
                before = self._volume.size
                try:
                    await self._in_thread(self._carry_out, wish, limiter=self._limiter)
                except LukshdrfsError as error:
                    self._note_failure(str(error), error.exit_code)
                except pyfuse3.FUSEError:
                    self._note_failure("the volume is locked", InUse.exit_code)
                except Exception as error:  # a bug: say so loudly, keep the mount
                    log.exception("resizing failed")
                    self._note_failure(str(error), LukshdrfsError.exit_code)
                else:
                    log.info("the volume has %d bytes now", self._volume.size)
                self._tell_lane()
                if self._volume.size != before:
                    await self._tell_kernel()
                if self._progress["state"] == "running":
                    self._progress["state"] = "done"

    def _note_failure(self, reason: str, exit_code: int) -> None:
        log.error("the volume keeps its size: %s", reason)
        self._progress |= {"state": "failed", "error": reason, "exit_code": exit_code}

    def _carry_out(self, wish: Wish) -> None:
        """In a thread."""
        volume, before = self._volume, self._volume.size
        size = volume.room() if wish.size is None else wish.size
        if size > before:
            self._progress["total"] = size - before
            # the lane is told before the new size shows in stat: what is seen can be read and written
            volume.lengthen(size, fill=wish.fill, go_on=self._go_on, before_shown=lambda: self._tell_lane_of(size))
        elif size < before and wish.size is None:
            log.error("the payload was cut off: of the volume's %d bytes, only %d are left", before, size)
            self._tell_lane_of(size)
            volume.refresh_size()
        elif size < before and not wish.shrink:
            raise UsageError(f"it has {before} bytes, and those behind {size} would be lost; --shrink takes them away")
        elif size < before:
            self._tell_lane_of(size)
            try:
                volume.resize(size)
            finally:
                self._tell_lane()

    def _go_on(self, done: int) -> bool:
        trio.from_thread.check_cancelled()  # the mount ends
        self._progress["done"] = done
        return bool(self._current) and not self._locked()

    def _tell_lane(self) -> None:
        self._tell_lane_of(self._volume.size)

    def _tell_lane_of(self, size: int) -> None:
        if self.lane:
            self.lane.set_size(size)

    async def _tell_kernel(self) -> None:
        """Have it ask for the size, and forget what it has cached: its last page may have ended with the volume."""
        # in a thread: pages that a program has mapped and changed are written first, to us
        await trio.to_thread.run_sync(self._invalidate)

    def _invalidate(self) -> None:
        with contextlib.suppress(OSError):  # it does not know the image any more
            pyfuse3.invalidate_inode(self._image)
