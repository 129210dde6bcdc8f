"""A volume as C code has it, beside the Python object and under its locks: what the fast lane's threads use."""

from __future__ import annotations

from collections.abc import Sequence

from lukshdrfs.errors import OutOfMemory
from lukshdrfs.native import ffi, lib
from lukshdrfs.volume.extents import Extent

_MODULUS = 1 << 64


class NativeVolume:
    """
    A `struct native_volume`. It lives as long as this object: `set_size` is safe even after the volume is closed.

    Payload, locks and ciphers are the volume's. Nothing may be read or written once those are closed.
    """

    def __init__(self, payload: object, locks: object, extents: Sequence[Extent], *, read_only: bool) -> None:
        """Put it together from C objects: a `struct payload` and a `struct sector_locks`. Raises OutOfMemory."""
        mapped = ffi.new("struct extent[]", len(extents))
        for target, extent in zip(mapped, extents, strict=True):
            target.payload_shift = extent.payload_shift % _MODULUS
            target.iv_shift = extent.iv_shift % _MODULUS
            target.sector_size = extent.sector_size
            target.error = extent.error
            target.cipher = extent.cipher.native if extent.cipher else ffi.NULL
        ends = [extent.end for extent in extents]
        volume = lib.native_volume_new(payload, locks, read_only, mapped, ends, len(extents))
        if volume == ffi.NULL:
            raise OutOfMemory("there is no memory for the volume")
        self._volume = ffi.gc(volume, lib.native_volume_free)

    @property
    def native(self) -> object:
        """The C object."""
        return self._volume

    def move_border(self, number: int, to: int) -> None:
        """Move the border behind an extent to byte `to`; what `ExtentMap.move_border` asks for has to be so."""
        lib.native_volume_move_border(self._volume, number, to)

    def set_size(self, size: int) -> None:
        """Say where the volume ends now, in bytes. The payload must reach that far."""
        lib.native_volume_set_size(self._volume, size)
