"""
Plaintext bytes at any offset: payload, segments and ciphers together.

The unit of atomicity is the sector: of two concurrent writes to one sector none is lost, and a read sees a sector
before or after a write, never between. Across sectors there is no such promise, as on a disk.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from lukshdrfs.errors import PayloadError, ReadOnlyError
from lukshdrfs.payload import Payload
from lukshdrfs.payload.holes import free_space, unwritten_end
from lukshdrfs.sectors import round_down
from lukshdrfs.volume.extents import Extent, ExtentMap
from lukshdrfs.volume.native_volume import NativeVolume
from lukshdrfs.volume.ranges import Ranges
from lukshdrfs.volume.sector_locks import SectorLocks

if TYPE_CHECKING:
    from lukshdrfs.volume.moving.online import OnlineConversion

log = logging.getLogger(__name__)

_GROW_STEP = 1 << 20
"""Bytes, whole sectors of any size."""


class Volume:
    """
    An unlocked volume. Any number of threads may use one at the same time.

    A context manager that closes it: wipes the key and lets go of the payload.
    """

    def __init__(
        self,
        payload: Payload,
        extents: Sequence[Extent],
        properties: Mapping[str, str] | None = None,
        when_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """Put a volume together; the extents follow one another without gaps. Use `open_volume`."""
        self.conversion: OnlineConversion | None = None
        """What goes on with its conversion, if it is half-converted and may be written to."""
        self._when_closed = when_closed
        self._payload = payload
        self._map = ExtentMap(extents)
        self._locks = SectorLocks()
        self._ranges = Ranges(payload, self._map, self._locks)
        self._native: NativeVolume | None = None
        self._properties = MappingProxyType(dict(properties or {}))

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._map.last.end

    @property
    def sector_size(self) -> int:
        """Bytes of the largest encryption sector in it."""
        return self._map.widest_sector

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""
        return self._payload.read_only

    @property
    def resizable(self) -> bool:
        """Whether the volume's size follows the payload's: the header does not fix it, nor did who opened it."""
        return self._map.last.dynamic

    def resize(self, size: int) -> None:
        """
        Make the volume `size` bytes long, and its payload with it: shorter at once, longer as `lengthen` does.

        Raises PayloadError: with EPERM where the size is fixed, EINVAL unless `size` is whole sectors and more than
        the segments before the last one, or the storage's errno; ReadOnlyError.
        """
        last, before = self._map.last, self.size
        self._check_size(size)
        if size >= before:
            self.lengthen(size)
            return
        self._set_size(size)
        with self._locks.hold(size, before, exclusive=True):  # those who are still at the end that goes
            self._payload.resize(last.payload_offset + size - last.start)

    def lengthen(
        self,
        size: int,
        *,
        fill: bool = True,
        go_on: Callable[[int], bool] = lambda _done: True,
        before_shown: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Make the volume `size` bytes long, no less than it is, and its payload where that is shorter.

        What comes to the end is zeros, encrypted, written and flushed before anybody sees it: a hole would show which
        part is unused, and read as anything but zeros. Without `fill`, it is what the payload has there. Reads and
        writes go on meanwhile; there may be no other change of the size.

        `go_on` is called with the bytes that are filled, after each step; once it returns False, or raises, the payload
        is as long as it was, and the volume, too. `before_shown` is called when nothing can fail any more.

        Raises PayloadError: with EPERM where the size of the volume or of the payload is fixed, EINVAL unless `size` is
        whole sectors and no less than what the payload has, ECANCELED if it was not to go on, or the storage's errno;
        ReadOnlyError.
        """
        last = self._map.last
        self._check_size(size)
        if self.read_only:
            raise ReadOnlyError("the volume is open for reading only")
        room = self.room()
        if size < room:
            text = f"its payload has room for {room} bytes, and a volume takes all of it: {size} is less"
            raise PayloadError(text, errno.EINVAL)
        before = self._payload.size
        if size > room:
            # refused before anything is written, where it cannot be
            self._payload.resize(last.payload_offset + size - last.start)
            self._payload.resize(before)
            self._check_space(size - room)
        try:
            if fill:
                self._fill(last, size, go_on)
            elif size > room:
                self._payload.resize(last.payload_offset + size - last.start)
            self._payload.flush()
        except BaseException:
            if size > room:
                self._payload.resize(before)
            raise
        before_shown()
        self._set_size(size)

    def _fill(self, last: Extent, size: int, go_on: Callable[[int], bool]) -> None:
        """Write zeros from the volume's end on. The payload grows step by step: if we end, little of it is a hole."""
        zeros = memoryview(bytes(_GROW_STEP))
        for offset in range(last.end, size, _GROW_STEP):
            step = min(_GROW_STEP, size - offset)
            end = last.payload_offset + offset + step - last.start
            if end > self._payload.size:
                self._payload.resize(end)
            self._ranges.write(zeros[:step], offset, synchronous=False)
            if not go_on(offset + step - last.end):
                raise PayloadError("stopped before it was done", errno.ECANCELED)

    def _check_space(self, size: int) -> None:
        """Raise PayloadError if the payload's file system has less: hours of filling would end so, and fill it up."""
        if self._payload.descriptor is None:
            return
        free = free_space(self._payload.descriptor)
        if free is not None and size > free:
            raise PayloadError(f"{size} bytes more: the payload's file system has {free} free", errno.ENOSPC)

    def _check_size(self, size: int) -> None:
        """Raise PayloadError unless the volume may have another size, and this one."""
        last = self._map.last
        if not last.dynamic:
            raise PayloadError("the volume's size is fixed by its header, or by --size", errno.EPERM)
        if size <= last.start or (size - last.start) % last.sector_size:
            raise PayloadError(f"{size} bytes are not one or more whole sectors of {last.sector_size}", errno.EINVAL)

    def room(self) -> int:
        """Return how many bytes the volume would have if it took all of the payload. Raises PayloadError."""
        self._payload.refresh_size()
        last = self._map.last
        if not last.dynamic:
            return self.size
        return last.start + max(0, round_down(self._payload.size - last.payload_offset, last.sector_size))

    def unseen(self) -> int:
        """
        Return by how many bytes the payload's room is more than the volume, negative if it was cut off.

        0 where only a server could tell. Raises PayloadError.
        """
        return 0 if self._payload.descriptor is None else self.room() - self.size

    def unwritten_end(self) -> int:
        """Return how many bytes at the end, in whole sectors, are a hole of the payload; 0 if there are others, too."""
        last = self._map.last
        if self._payload.descriptor is None or not last.dynamic:
            return 0
        end = last.payload_offset + last.size
        return round_down(unwritten_end(self._payload.descriptor, last.payload_offset, end), last.sector_size)

    def refresh_size(self) -> None:
        """Notice that the payload has become longer or shorter. Raises PayloadError if not even a sector is left."""
        size = self.room()
        if size <= self._map.last.start:
            raise PayloadError("the payload has become too short for the volume")
        if size != self.size:
            self._set_size(size)

    def _set_size(self, size: int) -> None:
        self._map.move_border(len(self._map.extents) - 1, size)

    def hold_alone(self, start: int, end: int) -> AbstractContextManager[None]:
        """Have all that others ask for between two bytes wait, and the rest go on, for the time of the context."""
        return self._locks.hold(*self._map.widened(start, end), exclusive=True)

    def move_border(self, number: int, to: int) -> None:
        """Move the border behind extent `number` to byte `to`, while all between its old and new place is held."""
        self._map.move_border(number, to)
        if self._native:
            self._native.move_border(number, to)

    @property
    def properties(self) -> Mapping[str, str]:
        """What the volume is, in words: type, uuid, cipher, …; never secrets."""
        return self._properties

    def modified_ns(self) -> int:
        """Return when the payload was last written to, in nanoseconds since the epoch."""
        return self._payload.modified_ns()

    def native(self, threads: int) -> NativeVolume | None:
        """
        Return what C code needs to read and write the volume by itself, beside this object and under its locks.

        Cipher contexts for that many threads are made in advance. It ends where this volume ends now, until it is told
        otherwise. None if the payload is nothing that C code can use. What is returned is good until `close`.
        Raises OutOfMemory.
        """
        payload = self._payload.native
        if payload is None:
            return None
        if self._native is None:
            for extent in self._map.extents:
                if extent.cipher:
                    extent.cipher.prepare(threads)
            self._native = NativeVolume(payload, self._locks.native, self._map.extents, read_only=self.read_only)
        return self._native

    def pread(self, size: int, offset: int) -> bytes:
        """
        Return up to `size` bytes of plaintext from byte `offset` on; fewer only at the end of the volume.

        Raises PayloadError if the storage fails.
        """
        buffer = bytearray(max(0, min(size, self.size - offset)))
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from byte `offset` on and return how many bytes there were before the volume's end."""
        if offset < 0:
            raise PayloadError(f"offset {offset} is negative", errno.EINVAL)
        size = max(0, min(len(buffer), self.size - offset))
        if size:
            self._ranges.read(buffer[:size], offset)
        return size

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int, *, synchronous: bool = False) -> int:
        """
        Write plaintext at byte `offset` and return how many bytes fitted before the volume's end.

        With `synchronous`, they are on the payload's storage on return, whatever becomes of others' writes.

        Raises PayloadError if the storage fails, with ENOSPC if `offset` is at or past the end; ReadOnlyError.
        """
        if self.read_only:
            raise ReadOnlyError("the volume is open for reading only")
        if offset < 0:
            raise PayloadError(f"offset {offset} is negative", errno.EINVAL)
        view = memoryview(data)
        if view and offset >= self.size:
            raise PayloadError(f"write at byte {offset}: the volume ends at {self.size}", errno.ENOSPC)
        size = min(len(view), max(0, self.size - offset))
        if size:
            self._ranges.write(view[:size], offset, synchronous=synchronous)
        return size

    def flush(self, *, asked: bool = True) -> None:
        """
        Return when everything written is on the payload's storage. Raises PayloadError.

        One that is not `asked` for says nothing of earlier losses; the next one that is does.
        """
        self._payload.flush(asked=asked)

    def fail_waiting(self) -> None:
        """Have reads and writes fail at once that wait for a storage which is away, as far as that can be had."""
        self._payload.fail_waiting()

    def wait_again(self) -> None:
        """Have reads and writes wait again for a storage that is away."""
        self._payload.wait_again()

    def wipe_keys(self) -> None:
        """Wipe the key, and keep the payload. Nobody may be reading or writing, and nobody can from now on."""
        for extent in self._map.extents:
            if extent.cipher:
                extent.cipher.close()

    def close(self) -> None:
        """Wipe the key and let go of the payload. Does not flush. May be called again."""
        self._native = None
        self.wipe_keys()
        self._payload.close()
        self._when_closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if not self.read_only:
                self.flush()
        finally:
            self.close()
