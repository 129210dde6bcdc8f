"""The open handles of the image: what each has asked for by opening it, and what it has heard of failed flushes."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from lukshdrfs.errors import LukshdrfsError
from lukshdrfs.volume import Volume

MANY_SYNCS = 128
"""Synchronous writes without the kernel's sync after them by which it is seen that this kernel has none."""


class Handles:
    """Numbers of open handles, and their flushes."""

    def __init__(self, volume: Volume, in_thread: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Take what is flushed, and how work is done in a thread."""
        self._volume = volume
        self._in_thread = in_thread
        self._synchronous: set[int] = set()
        """Handles opened with O_SYNC or O_DSYNC."""
        self._next = 1
        self._flushing = trio.Lock()
        self._failures, self._failure = 0, errno.EIO
        """How many flushes have failed, and the last one's errno."""
        self._heard: dict[int, int] = {}
        """Of how many of them each open handle has been told."""
        self._to_be_synced: dict[int, int] = {}
        """Synchronous writes of a handle that the kernel has it synced after: it does where the page cache is used."""

    def open(self, flags: int) -> int:
        """Return the number of a new handle, by the flags that it is opened with."""
        handle, self._next = self._next, self._next + 1
        self._heard[handle] = self._failures
        if flags & os.O_DSYNC:  # O_SYNC contains it
            self._synchronous.add(handle)
        return handle

    def release(self, handle: int) -> None:
        """Forget a handle."""
        self._synchronous.discard(handle)
        self._heard.pop(handle, None)
        self._to_be_synced.pop(handle, None)

    def is_synchronous(self, handle: int) -> bool:
        """Whether each of its writes is to be on the storage when it is answered."""
        return handle in self._synchronous

    def note_synchronous_write(self, handle: int) -> None:
        """Note that the kernel will have the handle synced after a write."""
        self._to_be_synced[handle] = self._to_be_synced.get(handle, 0) + 1

    async def sync(self, handle: int) -> None:
        """Flush for a handle. Raises LukshdrfsError; FUSEError for a failure that it has not heard of yet."""
        if 0 < self._to_be_synced.get(handle, 0) < MANY_SYNCS:
            self._to_be_synced[handle] -= 1
            await self._flush_after_write()
        else:
            await self._flush_for(handle)

    async def _flush_after_write(self) -> None:
        """Flush for who has asked for his own write alone. If that fails, others' data are lost, and they hear."""
        async with self._flushing:
            try:
                await self._in_thread(functools.partial(self._volume.flush, asked=False))
            except LukshdrfsError as error:
                self._failures += 1
                self._failure = error.errno or errno.EIO
                raise

    async def _flush_for(self, handle: int) -> None:
        """
        Flush. A failure is told to every handle that is open, once, as the kernel does with a file's (errseq_t).

        One at a time, for the kernel tells it once to us: of two at the same time, one would not hear of it.
        """
        async with self._flushing:
            try:
                await self._in_thread(self._volume.flush)
            except LukshdrfsError as error:
                self._failures += 1
                self._failure = error.errno or errno.EIO
                self._heard[handle] = self._failures
                raise
            heard, self._heard[handle] = self._heard.get(handle, self._failures), self._failures
            if heard != self._failures:
                raise pyfuse3.FUSEError(self._failure)
