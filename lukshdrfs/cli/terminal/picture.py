"""A payload's map, as a PNG file and as characters."""

from __future__ import annotations

import math
import os
import stat
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from lukshdrfs.cli.terminal.legend import legend_lines
from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.examination.region_map import Kind, RegionMap

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

NAMES = {
    Kind.UNREAD: "not read",
    Kind.RANDOM: "random",
    Kind.UNEVEN: "low entropy",
    Kind.REPEATED: "repeated",
    Kind.ZERO: "zeros",
    Kind.HOLE: "hole",
    Kind.SIGNATURE: "signature",
}
"""What the kinds are called."""

COLOURS = {
    Kind.UNREAD: (0xD0, 0xD0, 0xD0),
    Kind.RANDOM: (0x4C, 0x78, 0xA8),
    Kind.UNEVEN: (0xF5, 0x8E, 0x1D),
    Kind.REPEATED: (0x8E, 0x44, 0xAD),
    Kind.ZERO: (0x00, 0x00, 0x00),
    Kind.HOLE: (0xFF, 0xFF, 0xFF),
    Kind.SIGNATURE: (0xE0, 0x20, 0x20),
}
"""Red, green and blue, 0 to 255: light grey, blue, orange, purple, black, white, red."""

_PAST_THE_END = (0xF0, 0xF0, 0xE8)
_CHARACTERS = {
    Kind.UNREAD: "\u00b7",
    Kind.RANDOM: "\u2591",
    Kind.UNEVEN: "\u2592",
    Kind.REPEATED: "\u2593",
    Kind.ZERO: "\u2588",
    Kind.HOLE: "\u2581",
    Kind.SIGNATURE: "\u25c6",
}
_COLUMNS = 64
_ROWS = 16
_PIXELS = 512


def png(region_map: RegionMap, *, legend: bool = False) -> bytes:
    """
    Return a map as a PNG file with a palette: a square of pixels for each cell, row by row, and at most 512 across.

    With `legend`, what the colours mean is written below it.

    Source: PNG specification (W3C), sections 5 (chunks) and 11.2.
    """
    cells = bytes(region_map.cells)
    columns = max(1, math.isqrt(max(0, len(cells) - 1)) + 1)
    rows = max(1, -(-len(cells) // columns))
    scale = max(1, _PIXELS // columns)
    cells = cells.ljust(columns * rows, bytes([len(COLOURS)]))
    lines = []
    for row in range(rows):
        line = b"".join(bytes([cell]) * scale for cell in cells[row * columns : (row + 1) * columns])
        lines.append((b"\0" + line) * scale)  # each line begins with its filter: none
    height = rows * scale
    if legend:
        names = {**{int(kind): NAMES[kind] for kind in Kind}, len(COLOURS): "past the end"}
        below = legend_lines(names, columns * scale, ink=Kind.ZERO, paper=len(COLOURS))
        lines += [b"\0" + line for line in below]
        height += len(below)
    palette = b"".join(bytes(COLOURS[kind]) for kind in Kind) + bytes(_PAST_THE_END)
    return (
        PNG_SIGNATURE
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", columns * scale, height, 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", palette)
        + _chunk(b"IDAT", zlib.compress(b"".join(lines), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def check_place(file: Path) -> None:
    """Raise DeviceError if a picture cannot go there: there is no such directory, or something else than a PNG."""
    if str(file) == "-":
        raise UsageError("-: the picture goes to a file; standard output has the findings")
    if not file.parent.is_dir():
        raise DeviceError(f"{file}: there is no directory {file.parent}")
    try:
        os.close(_open(file, make=False))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceError(f"{file}: {os.strerror(error.errno or 0)}") from None


def write_picture(file: Path, data: bytes) -> None:
    """Write a PNG to a new file, or over another picture; what is there is looked at again. Raises DeviceError."""
    try:
        with os.fdopen(_open(file, make=True), "r+b") as stream:
            stream.truncate(0)
            stream.write(data)
    except OSError as error:
        raise DeviceError(f"{file}: {os.strerror(error.errno or 0)}") from None


def _open(file: Path, *, make: bool) -> int:
    """Return a descriptor of a new file or of a picture that is there; raise DeviceError for anything else."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY
    if make:
        with suppress(FileExistsError):
            return os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o666)
    if file.is_dir():
        raise DeviceError(f"{file} is not a file, so no picture goes there")
    descriptor = os.open(file, flags)
    try:
        _check_picture(descriptor, file)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_picture(descriptor: int, file: Path) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise DeviceError(f"{file} is not a file, so no picture goes there")
    if os.pread(descriptor, len(PNG_SIGNATURE), 0) != PNG_SIGNATURE:
        raise DeviceError(f"{file} is there and not a PNG picture; it is not overwritten")


def characters(region_map: RegionMap) -> list[str]:
    """Return a map as lines of block characters, at most 16 of 64, and a legend."""
    cells = region_map.shrunk(_COLUMNS * _ROWS)
    found = [
        "".join(_CHARACTERS[Kind(cell)] for cell in cells[at : at + _COLUMNS]) for at in range(0, len(cells), _COLUMNS)
    ]
    return [*found, "  ".join(f"{_CHARACTERS[kind]} {NAMES[kind]}" for kind in Kind if kind in cells)]


def bytes_of_a_character(region_map: RegionMap) -> int:
    """Return how much of the payload one of the characters stands for."""
    return region_map.cell_size * max(1, -(-len(region_map.cells) // (_COLUMNS * _ROWS)))
