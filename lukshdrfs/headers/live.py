"""A header that is changed again and again, while other programs may read it in between."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

from lukshdrfs.errors import DeviceError, HeaderError, InUse, PayloadError
from lukshdrfs.headers.file import open_for_writing
from lukshdrfs.headers.lock import header_lock
from lukshdrfs.headers.source import source_descriptor
from lukshdrfs.luks.edit import Write
from lukshdrfs.luks.luks2.binary import BinaryHeader, choose_copy
from lukshdrfs.luks.luks2.layout import BINARY_SIZE
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.luks2.validity import check_metadata
from lukshdrfs.luks.model import Header
from lukshdrfs.payload.writable import check_writable_device
from lukshdrfs.payload.writing import sync_descriptor, write_all

_NOISE_STEP = 1 << 20


class LiveHeader:
    """
    A LUKS2 header where it lies, held open for many changes.

    Each is made under cryptsetup's lock, which is let go of between them; what another program has changed meanwhile is
    not overwritten.

    One thread at a time uses it. A context manager that closes it.
    """

    def __init__(self, name: str, header: Header) -> None:
        """
        Open the header that was read from `name`, a path.

        Raises DeviceError if it cannot be written to there, InUse if it is no longer as it was read.
        """
        if source_descriptor(name) is not None:
            raise DeviceError(f"header {name}: only a file or device can be changed; name it by its path")
        self.name = name
        copy, _ = choose_copy(header.area)
        self._binary: BinaryHeader = copy.binary
        self.metadata: Json = copy.metadata
        """As they are now."""
        self._is_locked = False
        self._last_seqid = self._binary.seqid
        """Of the last change that was tried."""
        self._descriptor = open_for_writing(name, "header")
        try:
            check_writable_device(self._descriptor, name, f"header {name}")
            with header_lock(self._descriptor, name, exclusive=False):
                size = self._binary.hdr_size
                self._ours = ({header.area[:BINARY_SIZE]}, {header.area[size : size + BINARY_SIZE]})
                self._check_ours()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _binary_headers(self) -> tuple[bytes, bytes]:
        return self._read(0, BINARY_SIZE), self._read(self._binary.hdr_size, BINARY_SIZE)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            text = f"header {self.name}: reading at byte {offset}: {os.strerror(error.errno or 0)}"
            raise PayloadError(text, error.errno or 0) from None

    def _check_ours(self) -> None:
        """Raise InUse unless each copy is what it was, or what a change of ours that failed may have left."""
        if any(there not in known for there, known in zip(self._binary_headers(), self._ours, strict=True)):
            raise self._changed()

    def _changed(self) -> InUse:
        return InUse(
            f"header {self.name}: another program has changed it meanwhile; nothing was written over that, and the "
            "payload is as its last step left it"
        )

    @property
    def json_size(self) -> int:
        """Bytes that the metadata may have."""
        return self._binary.json_size

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold cryptsetup's lock for several changes, so that no other program comes in between. Raises InUse."""
        if self._is_locked:
            yield
            return
        with header_lock(self._descriptor, self.name, exclusive=True):
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def commit(self, metadata: Json) -> None:
        """
        Write other metadata, each copy synced before the other is begun.

        Raises InUse if another program has changed the header, or put another one in its place; PayloadError if the
        storage fails: then either metadata may be there until a later change has not failed. HeaderError, before
        anything is written, if they do not fit.
        """
        check_metadata(metadata, self._binary.json_size)
        binary = BinaryHeader(
            self._binary.hdr_size, self._last_seqid + 1, self._binary.label, self._binary.uuid,
            self._binary.subsystem, csum_alg=self._binary.csum_alg,
        )  # fmt: skip
        copies = {secondary: binary.written(metadata, secondary=secondary) for secondary in (False, True)}
        with self.locked():
            self._check_unchanged()
            self._last_seqid = binary.seqid
            for secondary, known in zip((False, True), self._ours, strict=True):
                known.add(copies[secondary][:BINARY_SIZE])
            for secondary in (not self._binary.secondary, self._binary.secondary):  # the one that counts is the last
                self._write(Write(binary.hdr_size if secondary else 0, copies[secondary]))
        self._ours = ({copies[False][:BINARY_SIZE]}, {copies[True][:BINARY_SIZE]})
        self._binary, self.metadata = binary, metadata

    def _check_unchanged(self) -> None:
        try:
            same = os.path.samestat(os.fstat(self._descriptor), os.stat(self.name))  # noqa: PTH116 - as it was given
        except OSError as error:
            raise DeviceError(f"header {self.name}: {os.strerror(error.errno or 0)}; it is not written to") from None
        if not same:
            raise self._changed()
        self._check_ours()

    def _write(self, write: Write) -> None:
        write_all(self._descriptor, write.data, write.offset, f"header {self.name}")
        sync_descriptor(self._descriptor, f"header {self.name}")

    def write_area(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write into the keyslot areas, and return when it is on the storage. Raises InUse and PayloadError."""
        with self.locked():
            self._check_unchanged()
            write_all(self._descriptor, data, offset, f"header {self.name}")
            sync_descriptor(self._descriptor, f"header {self.name}")

    def read_area(self, offset: int, size: int) -> bytes:
        """Return what is in the keyslot areas. Raises HeaderError if it is not all there."""
        data = self._read(offset, size)
        while len(data) < size and (piece := self._read(offset + len(data), size - len(data))):
            data += piece
        if len(data) < size:
            raise HeaderError(f"header {self.name} is cut off: there is nothing at byte {offset + len(data)}")
        return data

    def overwrite(self, areas: Iterable[tuple[int, int]]) -> None:
        """Put random bytes over areas (offset and size in bytes) that the metadata no longer name."""
        with self.locked():
            self._check_unchanged()
            for offset, size in areas:
                for at in range(offset, offset + size, _NOISE_STEP):
                    noise = os.urandom(min(_NOISE_STEP, offset + size - at))
                    write_all(self._descriptor, noise, at, f"header {self.name}")
            sync_descriptor(self._descriptor, f"header {self.name}")

    def close(self) -> None:
        """Let go of the file. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
