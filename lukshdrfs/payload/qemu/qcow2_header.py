"""
What a qcow2 image says of other files: QEMU, docs/interop/qcow2.txt, "Header" and "Header extensions".

Only that is looked at here, so that no file is opened because an image names it; QEMU does the format.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass

from lukshdrfs.errors import DeviceError
from lukshdrfs.payload.qemu.image_file import ImageFile

_START = struct.Struct(">4sIQII")
"""Magic, version, where the backing file's name is and how long, bits of the size of a cluster."""

_MAGIC = b"QFI\xfb"
_FEATURES_OFFSET, _HEADER_LENGTH_OFFSET = 72, 100
_EXTERNAL_DATA_FILE = 1 << 2
_BACKING_FORMAT, _DATA_FILE_NAME = 0xE2792ACA, 0x44415441
_LARGEST_CLUSTER_BITS = 21
_LONGEST_NAME = 1023


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """Which other files are a part of an image, in its own words."""

    backing_file: str | None
    backing_format: str | None
    data_file: str | None
    """A file that its content is in; empty if it does not say which."""


def read_qcow2_header(image: ImageFile) -> Qcow2Header:
    """Look at an image's header. Raises DeviceError if it is no qcow2 image, or names its parts outside of itself."""
    start = image.read(_START.size)
    magic, version, name_offset, name_size, cluster_bits = (
        _START.unpack(start) if len(start) == _START.size else (b"", 0, 0, 0, 0)
    )
    if magic != _MAGIC or version not in (2, 3) or not 9 <= cluster_bits <= _LARGEST_CLUSTER_BITS:
        raise DeviceError(f"payload {image.name} is no qcow2 image")
    header = image.read(1 << cluster_bits)
    if name_offset and not (name_size <= _LONGEST_NAME and name_offset + name_size <= len(header)):
        raise DeviceError(f"payload {image.name}: the name of its backing file is not in its header")
    features, length = 0, _FEATURES_OFFSET
    if version >= 3:
        if len(header) < _HEADER_LENGTH_OFFSET + 4:
            raise DeviceError(f"payload {image.name} is no qcow2 image")
        features, length = _number(header, _FEATURES_OFFSET, 8), _number(header, _HEADER_LENGTH_OFFSET, 4)
    extensions = _extensions(header[: name_offset or len(header)], length)
    backing = os.fsdecode(header[name_offset:][:name_size]) if name_offset and name_size else None
    data_file = os.fsdecode(extensions.get(_DATA_FILE_NAME, b"")) if features & _EXTERNAL_DATA_FILE else None
    backing_format = extensions.get(_BACKING_FORMAT)
    return Qcow2Header(backing, os.fsdecode(backing_format) if backing_format else None, data_file)


def _number(header: bytes, offset: int, size: int) -> int:
    return int.from_bytes(header[offset : offset + size], "big")


def _extensions(header: bytes, offset: int) -> dict[int, bytes]:
    """Return the header extensions from an offset on, up to the one that ends them."""
    found: dict[int, bytes] = {}
    while offset + 8 <= len(header):
        kind, size = _number(header, offset, 4), _number(header, offset + 4, 4)
        if kind == 0 or offset + 8 + size > len(header):
            break
        found[kind] = header[offset + 8 : offset + 8 + size]
        offset += 8 + (size + 7 & ~7)
    return found


def path_of_part(image: ImageFile, name: str) -> str:
    """
    Return the path that an image means by a name, as QEMU reads it: relative to where the image is.

    Raises DeviceError for what is no path: an address of a server, a description in JSON.
    """
    name = name.removeprefix("file:")
    if re.match("[^/:]*:", name):
        raise DeviceError(
            f"payload {image.name} names {name!r} as a part of it; only files are opened, not what is behind a protocol"
        )
    return os.path.join(os.path.dirname(image.path), name)  # noqa: PTH118, PTH120 - as open(2) takes it
