"""qcow2 images whose headers say what qemu-img would not write: QEMU, docs/interop/qcow2.txt."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from support import qemu
from support.tools import program

BACKING_FORMAT, DATA_FILE_NAME = 0xE2792ACA, 0x44415441
_EXTERNAL_DATA_FILE = 1 << 2
_BACKING_NAME_OFFSET = 2048


def new_image(path: Path, size: int = 8 << 20, *options: str | Path) -> Path:
    """Make an empty image."""
    qemu.run(program("qemu-img"), "create", "-q", "-f", "qcow2", *options, path, str(size))
    return path


def name_data_file(image: Path, name: str) -> None:
    """Have an image name another file as the one that its data are in, as its owner could at any time."""
    header = bytearray(_header(image))
    features = struct.unpack_from(">Q", header, 72)[0]
    struct.pack_into(">Q", header, 72, features | _EXTERNAL_DATA_FILE)
    _extend(header, DATA_FILE_NAME, name.encode())
    _write(image, header)


def name_backing_file(image: Path, name: str, image_format: str | None = "raw") -> None:
    """Have an image name another file, or whatever else, as its backing file."""
    header = bytearray(_header(image))
    if image_format is not None:
        _extend(header, BACKING_FORMAT, image_format.encode())
    encoded = os.fsencode(name)
    header[_BACKING_NAME_OFFSET : _BACKING_NAME_OFFSET + len(encoded)] = encoded
    struct.pack_into(">QI", header, 8, _BACKING_NAME_OFFSET, len(encoded))
    _write(image, header)


def _header(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(4096)


def _extend(header: bytearray, kind: int, content: bytes) -> None:
    """Put a header extension before the others."""
    start = struct.unpack_from(">I", header, 100)[0]
    extension = struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)
    header[start:_BACKING_NAME_OFFSET] = (extension + header[start:])[: _BACKING_NAME_OFFSET - start]


def _write(image: Path, header: bytearray) -> None:
    with image.open("r+b") as file:
        file.write(header)
