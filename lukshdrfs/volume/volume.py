"""
Plaintext bytes at any offset: payload, segments and ciphers together.

This is the one place with read-modify-write and its locks. The unit of atomicity is the sector: of two
concurrent writes to one sector none is lost, and a read sees a sector before or after a write, never between.
Across sectors there is no such promise, as on a disk.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Self

from lukshdrfs.errors import PayloadError, ReadOnlyError
from lukshdrfs.payload import Payload
from lukshdrfs.payload.holes import unwritten_end
from lukshdrfs.sectors import IV_SECTOR, SectorSpan, round_down
from lukshdrfs.volume.direct_access import DirectAccess, DirectExtent
from lukshdrfs.volume.extent import Extent
from lukshdrfs.volume.sector_locks import SectorLocks

log = logging.getLogger(__name__)

_GROW_STEP = 1 << 20
"""Bytes, whole sectors of any size."""


class Volume:
    """
    An unlocked volume. Any number of threads may use one at the same time.

    A context manager that closes it: wipes the key and lets go of the payload.
    """

    def __init__(
        self, payload: Payload, extents: Sequence[Extent], properties: Mapping[str, str] | None = None
    ) -> None:
        """Put a volume together; the extents follow one another without gaps. Use `open_volume`."""
        self._payload = payload
        self._extents = tuple(extents)
        self._locks = SectorLocks()
        self._properties = MappingProxyType(dict(properties or {}))

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._extents[-1].end

    @property
    def sector_size(self) -> int:
        """Bytes of the largest encryption sector in it."""
        return max(extent.sector_size for extent in self._extents)

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""
        return self._payload.read_only

    @property
    def resizable(self) -> bool:
        """Whether the volume's size follows the payload's: the header does not fix it, nor did who opened it."""
        return self._extents[-1].dynamic

    def resize(self, size: int) -> None:
        """
        Make the volume `size` bytes long, and its payload with it: shorter at once, longer as `lengthen` does.

        Raises PayloadError: with EPERM where the size is fixed, EINVAL unless `size` is whole sectors and more than
        the segments before the last one, or the storage's errno; ReadOnlyError.
        """
        last, before = self._extents[-1], self.size
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
        last = self._extents[-1]
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
        longer, zeros = replace(last, size=size - last.start), bytes(_GROW_STEP)
        for offset in range(last.end, size, _GROW_STEP):
            step = min(_GROW_STEP, size - offset)
            end = last.payload_offset + offset + step - last.start
            if end > self._payload.size:
                self._payload.resize(end)
            self._write_piece(longer, memoryview(zeros)[:step], offset)
            if not go_on(offset + step - last.end):
                raise PayloadError("stopped before it was done", errno.ECANCELED)

    def _check_space(self, size: int) -> None:
        """Raise PayloadError if the payload's file system has less: hours of filling would end so, and fill it up."""
        if self._payload.descriptor is None:
            return
        status = os.fstatvfs(self._payload.descriptor)
        free = status.f_frsize * (status.f_bavail if os.geteuid() else status.f_bfree)
        if status.f_blocks and size > free:
            raise PayloadError(f"{size} bytes more: the payload's file system has {free} free", errno.ENOSPC)

    def _check_size(self, size: int) -> None:
        """Raise PayloadError unless the volume may have another size, and this one."""
        last = self._extents[-1]
        if not last.dynamic:
            raise PayloadError("the volume's size is fixed by its header, or by --size", errno.EPERM)
        if size <= last.start or (size - last.start) % last.sector_size:
            raise PayloadError(f"{size} bytes are not one or more whole sectors of {last.sector_size}", errno.EINVAL)

    def room(self) -> int:
        """Return how many bytes the volume would have if it took all of the payload. Raises PayloadError."""
        self._payload.refresh_size()
        last = self._extents[-1]
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
        last = self._extents[-1]
        if self._payload.descriptor is None or not last.dynamic:
            return 0
        end = last.payload_offset + last.size
        return round_down(unwritten_end(self._payload.descriptor, last.payload_offset, end), last.sector_size)

    def refresh_size(self) -> None:
        """Notice that the payload has become longer or shorter. Raises PayloadError if not even a sector is left."""
        size = self.room()
        if size <= self._extents[-1].start:
            raise PayloadError("the payload has become too short for the volume")
        if size != self.size:
            self._set_size(size)

    def _set_size(self, size: int) -> None:
        last = self._extents[-1]
        self._extents = (*self._extents[:-1], replace(last, size=size - last.start))

    @property
    def properties(self) -> Mapping[str, str]:
        """What the volume is, in words: type, uuid, cipher, …; never secrets."""
        return self._properties

    def modified_ns(self) -> int:
        """Return when the payload was last written to, in nanoseconds since the epoch."""
        return self._payload.modified_ns()

    def direct_access(self, threads: int) -> DirectAccess | None:
        """
        Return what C code needs to read and write the volume by itself, beside this object and under its locks.

        So many threads of it need no memory for ciphers then. None if the payload has neither a descriptor nor C
        functions. What is returned is good until `close`.
        """
        descriptor, functions = self._payload.descriptor, self._payload.functions
        if descriptor is None and functions is None:
            return None
        for extent in self._extents:
            if extent.cipher:
                extent.cipher.prepare(threads)
        extents = [
            DirectExtent(
                extent.start,
                extent.size,
                extent.payload_offset,
                extent.iv_tweak,
                extent.sector_size,
                extent.cipher.c_address if extent.cipher else 0,
            )
            for extent in self._extents
        ]
        return DirectAccess(descriptor, functions, self.read_only, tuple(extents), self._locks.c_address)

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
        for extent, first, last in self._pieces(offset, offset + size):
            self._read_piece(extent, buffer[first - offset : last - offset], first)
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
        for extent, first, last in self._pieces(offset, offset + size):
            self._write_piece(extent, view[first - offset : last - offset], first, synchronous=synchronous)
        return size

    def flush(self, *, asked: bool = True) -> None:
        """
        Return when everything written is on the payload's storage. Raises PayloadError.

        One that is not `asked` for says nothing of earlier losses; the next one that is does.
        """
        self._payload.flush(asked=asked)

    def be_patient(self, *, patient: bool) -> None:
        """Have reads and writes wait for a storage that is away, or fail at once, as far as that can be had."""
        self._payload.be_patient(patient=patient)

    def wipe_keys(self) -> None:
        """Wipe the key, and keep the payload. Nobody may be reading or writing, and nobody can from now on."""
        for extent in self._extents:
            if extent.cipher:
                extent.cipher.close()

    def close(self) -> None:
        """Wipe the key and let go of the payload. Does not flush. May be called again."""
        self.wipe_keys()
        self._payload.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            if not self.read_only:
                self.flush()
        finally:
            self.close()

    def _pieces(self, start: int, end: int) -> Iterator[tuple[Extent, int, int]]:
        """Yield the extents that a range of plaintext touches, each with the part of the range in it."""
        for extent in self._extents:
            first, last = max(start, extent.start), min(end, extent.end)
            if first < last:
                yield extent, first, last

    def _read_piece(self, extent: Extent, buffer: memoryview, offset: int) -> None:
        span = SectorSpan.covering(offset - extent.start, len(buffer), extent.sector_size)
        whole = span.covered_size == len(buffer)
        sectors = buffer if whole else memoryview(bytearray(span.covered_size))
        start = extent.start + span.offset
        with self._locks.hold(start, start + span.covered_size, exclusive=False):
            self._payload.read_into(sectors, extent.payload_offset + span.offset)
        _decrypt(extent, sectors, span.offset)
        if not whole:
            buffer[:] = sectors[span.skip : span.skip + span.size]

    def _write_piece(self, extent: Extent, data: memoryview, offset: int, *, synchronous: bool = False) -> None:
        span = SectorSpan.covering(offset - extent.start, len(data), extent.sector_size)
        sectors = memoryview(bytearray(span.covered_size))
        start = extent.start + span.offset
        with self._locks.hold(start, start + span.covered_size, exclusive=True):
            self._fetch_partial_sectors(extent, sectors, span)
            sectors[span.skip : span.skip + span.size] = data
            if extent.cipher:
                extent.cipher.encrypt(sectors, extent.iv_tweak + span.offset // IV_SECTOR)
            self._payload.write(sectors, extent.payload_offset + span.offset, synchronous=synchronous)

    def _fetch_partial_sectors(self, extent: Extent, sectors: memoryview, span: SectorSpan) -> None:
        """Put the plaintext of the sectors that are only partly written in their places."""
        unit, last = extent.sector_size, span.covered_size - extent.sector_size
        wanted = {0} if span.partial_head else set()
        if span.partial_tail:
            wanted.add(last)
        for at in wanted:
            sector = sectors[at : at + unit]
            self._payload.read_into(sector, extent.payload_offset + span.offset + at)
            _decrypt(extent, sector, span.offset + at)


def _decrypt(extent: Extent, sectors: memoryview, offset: int) -> None:
    """Decrypt whole sectors in place; `offset` is the first one's in its extent, in bytes."""
    if extent.cipher:
        extent.cipher.decrypt(sectors, extent.iv_tweak + offset // IV_SECTOR)
