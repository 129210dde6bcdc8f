"""A legend for a picture: rows of a coloured square and a name, as indices of the picture's palette."""

from __future__ import annotations

from collections.abc import Mapping

_GLYPHS = {
    " ": "0000000000000000",
    "a": "00000e010f110f00",
    "d": "01010d1311110f00",
    "e": "00000e111f100e00",
    "g": "00000f11110f010e",
    "h": "1010161911111100",
    "i": "04000c0404040e00",
    "l": "0c04040404040e00",
    "m": "00001a1515111100",
    "n": "0000161911111100",
    "o": "00000e1111110e00",
    "p": "00001e11111e1010",
    "r": "0000161910101000",
    "s": "00000e100e011e00",
    "t": "08081c0808090600",
    "u": "0000111111130d00",
    "w": "0000111115150a00",
    "y": "00001111110f010e",
    "z": "00001f0204081f00",
}
"""The letters that are needed, each 8 rows of 5 pixels: a byte for each row, in hexadecimal."""

_WIDTH, _HEIGHT, _ADVANCE = 5, 8, 6
_SCALE = 2
_MARGIN, _SQUARE, _ROW = 8, 16, 24


def legend_lines(names: Mapping[int, str], width: int, *, ink: int, paper: int) -> list[bytes]:
    """
    Return the lines of a legend that is `width` pixels wide, a byte for each pixel: an index of the palette.

    `names` are what the indices mean; `ink` and `paper` are the indices to write with and on. A name that is wider than
    the picture is cut off.
    """
    lines = [bytes([paper]) * width] * _MARGIN
    for index, name in names.items():
        row = [bytearray([paper]) * width for _ in range(_ROW)]
        for y in range(_SQUARE):
            edge = y in (0, _SQUARE - 1)
            square = bytes([ink if edge or x in (0, _SQUARE - 1) else index for x in range(_SQUARE)])
            row[y][_MARGIN : _MARGIN + _SQUARE] = square
        for position, char in enumerate(name):
            left = 2 * _MARGIN + _SQUARE + position * _ADVANCE * _SCALE
            for x, y in _dots(char):
                if left + x < width:
                    row[y][left + x] = ink
        lines += [bytes(line[:width]) for line in row]
    return lines


def _dots(char: str) -> list[tuple[int, int]]:
    """Return the pixels of a letter, as large as it is drawn."""
    rows = bytes.fromhex(_GLYPHS[char])
    return [
        (x * _SCALE + dx, y * _SCALE + dy)
        for y in range(_HEIGHT)
        for x in range(_WIDTH)
        if rows[y] >> (_WIDTH - 1 - x) & 1
        for dx in range(_SCALE)
        for dy in range(_SCALE)
    ]
