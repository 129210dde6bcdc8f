"""Payloads and volumes as C code sees them, with the faces of their Python twins."""

from __future__ import annotations

import errno
import os

from lukshdrfs.errors import PayloadError, ReadOnlyError
from lukshdrfs.native import ffi, lib
from lukshdrfs.payload import Payload
from lukshdrfs.volume import Volume

ROOM = 4096
"""Bytes that must be free before and behind a volume's data: VOLUME_ROOM."""
ENDS = 1 << 16
"""What reading a payload returns past its end: PAYLOAD_ENDS."""


class NativePayload:
    """The `struct payload` of a payload, with the face of that payload as far as both have one."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    @property
    def _operations(self) -> object:
        native = self.payload.native
        assert native is not None
        return native.operations  # type: ignore[attr-defined]

    @property
    def size(self) -> int:
        return self.payload.size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        data = ffi.new("uint8_t[]", len(buffer))
        error = self._operations.read(self.payload.native, data, len(buffer), offset)  # type: ignore[attr-defined]
        if error:
            raise PayloadError("reading", errno.EIO if error == ENDS else error)
        buffer[:] = ffi.buffer(data)[:]

    def write(self, data: memoryview, offset: int, *, synchronous: bool = False) -> None:
        code = self._operations.write(  # type: ignore[attr-defined]
            self.payload.native, ffi.from_buffer("uint8_t[]", data), len(data), offset, synchronous
        )
        if code:
            raise PayloadError("writing", code)

    def start(self, request: object) -> bool:
        """Begin a request that nobody waits for; return whether it was taken."""
        return bool(self._operations.start(self.payload.native, request))  # type: ignore[attr-defined]

    def flush(self) -> None:
        code = self._operations.flush(self.payload.native, True)  # type: ignore[attr-defined]
        if code:
            raise PayloadError("flushing", code)


class NativeView:
    """A volume's C object, with the face of the volume: it is read and written by C alone."""

    def __init__(self, volume: Volume) -> None:
        native = volume.native(1)
        assert native is not None
        self.volume, self._native = volume, native

    @property
    def size(self) -> int:
        return int(lib.native_volume_size(self._native.native))

    def set_size(self, size: int) -> None:
        self._native.set_size(size)

    def pread(self, size: int, offset: int) -> bytes:
        buffer = ffi.new("uint8_t[]", ROOM + size + ROOM)
        host = lib.volume_plain_host()
        count = lib.native_volume_read(self._native.native, host, buffer + ROOM, size, offset)
        if count < 0:
            raise PayloadError(os.strerror(-count), -count)
        return bytes(ffi.buffer(buffer + ROOM, count))

    def pwrite(self, data: bytes, offset: int, *, synchronous: bool = False) -> int:
        buffer = ffi.new("uint8_t[]", bytes(ROOM) + data + bytes(ROOM))
        host = lib.volume_plain_host()
        count = lib.native_volume_write(self._native.native, host, buffer + ROOM, len(data), offset, synchronous)
        if count < 0:
            error = ReadOnlyError("") if count == -errno.EROFS else PayloadError(os.strerror(-count), -count)
            raise error
        return int(count)

    def flush(self) -> None:
        code = lib.native_volume_flush(self._native.native, lib.volume_plain_host(), True)
        if code:
            raise PayloadError(os.strerror(code), code)
