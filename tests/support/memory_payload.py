"""A payload in memory: sparse, and able to fail, to be slow and to be interrupted half-way."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Self

from lukshdrfs.errors import PayloadError

PAGE = 4096


def _nothing() -> None:
    """Stand for a hook that does nothing."""


class MemoryPayload:
    """Fulfils `lukshdrfs.payload.Payload`. What was never written is zeros and takes no memory."""

    def __init__(self, size: int, *, read_only: bool = False) -> None:
        self._size = size
        self._read_only = read_only
        self._pages: dict[int, bytearray] = {}
        self._pages_lock = threading.Lock()
        self.before_read: Callable[[int, int], None] = lambda _offset, _size: None
        """Called with offset and size before a read; what it raises is the storage's answer."""
        self.before_write: Callable[[int, int], None] = lambda _offset, _size: None
        """Called with offset and size before a write."""
        self.half_way: Callable[[], None] = _nothing
        """Called in the middle of each read and write: other threads may come in between."""
        self.descriptor = None
        self.native = None
        self.name = "in memory"
        self.flushes = 0
        self.closed = False

    @property
    def size(self) -> int:
        return self._size

    @property
    def read_only(self) -> bool:
        return self._read_only

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield page number, place in the page and length of each part of a range; halves it on the way."""
        done, half = 0, size // 2
        while done < size:
            page, at = divmod(offset + done, PAGE)
            length = min(PAGE - at, size - done)
            if done < half:
                length = min(length, half - done)
            yield page, at, length
            done += length
            if done == half:
                self.half_way()

    def identity(self) -> None:
        return

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.before_read(offset, len(buffer))
        if offset + len(buffer) > self._size:
            raise PayloadError("the payload ends before", errno.EIO)
        done = 0
        for page, at, length in self._pieces(offset, len(buffer)):
            with self._pages_lock:
                found = self._pages.get(page)
                buffer[done : done + length] = bytes(length) if found is None else bytes(found[at : at + length])
            done += length

    def write(self, data: memoryview, offset: int, *, synchronous: bool = False) -> None:
        self.before_write(offset, len(data))
        if self._read_only:
            raise PayloadError("written to, though it is read-only", errno.EROFS)
        if offset + len(data) > self._size:
            raise PayloadError("the payload ends before", errno.ENOSPC)
        done = 0
        for page, at, length in self._pieces(offset, len(data)):
            with self._pages_lock:
                self._pages.setdefault(page, bytearray(PAGE))[at : at + length] = data[done : done + length]
            done += length
        self.flushes += synchronous

    def flush(self, *, asked: bool = True) -> None:
        self.flushes += 1

    def fail_waiting(self) -> None:
        """Do nothing: nobody waits for memory."""

    def wait_again(self) -> None:
        """Do nothing: nobody waits for memory."""

    def resize(self, size: int) -> None:
        self._size = size

    def refresh_size(self) -> None:
        """Do nothing: nobody else can change it."""

    def modified_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def close(self) -> None:
        self.closed = True

    def content(self, offset: int = 0, size: int | None = None) -> bytes:
        """Return what is stored, past all hooks."""
        size = self._size - offset if size is None else size
        found = bytearray(size)
        done = 0
        while done < size:
            page, at = divmod(offset + done, PAGE)
            length = min(PAGE - at, size - done)
            found[done : done + length] = self._pages.get(page, bytes(PAGE))[at : at + length]
            done += length
        return bytes(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
