"""A map as a picture: read back as the PNG specification says."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest

from lukshdrfs.cli.terminal.legend import legend_lines
from lukshdrfs.cli.terminal.picture import COLOURS, NAMES, PNG_SIGNATURE, characters, check_place, png, write_picture
from lukshdrfs.errors import DeviceError
from lukshdrfs.examination.block_scan import REGION
from lukshdrfs.examination.region_map import Kind, RegionMap

Pixel = tuple[int, int, int]


def decoded(data: bytes) -> list[list[Pixel]]:
    """Return the rows of pixels of a PNG with a palette of 8 bits and without filters; check sums and order."""
    stream = io.BytesIO(data)
    assert stream.read(8) == PNG_SIGNATURE
    chunks = []
    while head := stream.read(8):
        size, kind = struct.unpack(">I4s", head)
        body = stream.read(size)
        assert stream.read(4) == struct.pack(">I", zlib.crc32(kind + body))
        chunks.append((kind, body))
    assert [kind for kind, _ in chunks] == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert rest == [8, 3, 0, 0, 0]
    palette = chunks[1][1]
    lines = zlib.decompress(chunks[2][1])
    assert len(lines) == height * (width + 1)
    rows = [lines[at : at + width + 1] for at in range(0, len(lines), width + 1)]
    assert all(row[0] == 0 for row in rows)
    return [[(palette[3 * i], palette[3 * i + 1], palette[3 * i + 2]) for i in row[1:]] for row in rows]


@pytest.mark.parametrize("cells", [1, 2, 7, 64, 1000, 1 << 16])
def test_each_cell_has_its_colour(cells: int) -> None:
    """From left to right and from top to bottom, each a square; what is past the end has a colour of its own."""
    region_map = RegionMap(cells * REGION)
    for cell in range(cells):
        region_map.cells[cell] = Kind(cell * 5 % len(Kind))
    pixels = decoded(png(region_map))
    columns = next(n for n in range(1, 300) if n * n >= cells)
    scale = len(pixels[0]) // columns
    assert len(pixels[0]) == columns * scale <= 512
    for cell in range(columns * (len(pixels) // scale)):
        row, column = divmod(cell, columns)
        corners = {
            pixels[row * scale + y][column * scale + x] for x in (0, scale - 1) for y in (0, scale - 1)
        }  # fmt: skip
        assert len(corners) == 1
        if cell < cells:
            assert corners == {COLOURS[Kind(cell * 5 % len(Kind))]}
        else:
            assert not corners & set(COLOURS.values())


@pytest.mark.parametrize("cells", [1, 7, 1000, 40_000, 1 << 16])
def test_the_legend_is_below_the_map(cells: int) -> None:
    """The map stays as it is; below it, each colour is shown in a frame, with letters beside it."""
    region_map = RegionMap(cells * REGION)
    region_map.mark(0, cells * REGION, Kind.RANDOM)
    alone, whole = decoded(png(region_map)), decoded(png(region_map, legend=True))
    assert whole[: len(alone)] == alone
    below = whole[len(alone) :]
    ink = COLOURS[Kind.ZERO]
    rows = [below[8 + 24 * n : 32 + 24 * n] for n in range(len(COLOURS) + 1)]
    assert [row[8][16] for row in rows] == [*COLOURS.values(), below[0][0]]
    assert all(row[0][8:24] == [ink] * 16 and row[8][8] == row[8][23] == ink for row in rows), "white on white"
    assert all(any(line[32:].count(ink) for line in row) for row in rows)


@pytest.mark.parametrize("name", [*NAMES.values(), "past the end"])
def test_the_legend_can_be_read(name: str) -> None:
    """Every letter of every name has a form of its own, and the picture is never too narrow for the name."""
    lines = legend_lines({0: name}, 257, ink=1, paper=2)
    assert {len(line) for line in lines} == {257}
    forms = {char: tuple(line[32 + 12 * at : 42 + 12 * at] for line in lines) for at, char in enumerate(name)}
    assert len(set(forms.values())) == len(set(name))
    assert all(line[32 + 12 * len(name) :].count(1) == 0 for line in lines)


def test_an_empty_map() -> None:
    """It is a picture, too."""
    assert len(decoded(png(RegionMap(0)))) > 0
    assert characters(RegionMap(0)) == [""]


def test_characters() -> None:
    """At most 16 rows of 64, then what they mean."""
    region_map = RegionMap(5000 * REGION)
    region_map.mark(0, 5000 * REGION, Kind.RANDOM)
    region_map.mark(0, 1, Kind.HOLE)
    *rows, legend = characters(region_map)
    assert len(rows) <= 16
    assert rows[0] == "▁" + "░" * 63
    assert legend == "░ random  ▁ hole"


def test_where_a_picture_goes(tmp_path: Path) -> None:
    """To a new file or over a picture; nothing else is overwritten."""
    file = tmp_path / "map.png"
    check_place(file)
    file.write_bytes(png(RegionMap(1)))
    check_place(file)
    file.write_bytes(b"a payload, by mistake")
    for wrong in (file, tmp_path, tmp_path / "none" / "map.png"):
        with pytest.raises(DeviceError):
            check_place(wrong)


def test_what_was_no_picture_when_it_came_to_writing_stays(tmp_path: Path) -> None:
    """A picture is written over a picture or to a new file: what has its name by then is looked at again."""
    place = tmp_path / "map.png"
    check_place(place)
    place.write_bytes(b"something else")
    with pytest.raises(DeviceError, match="not a PNG"):
        write_picture(place, PNG_SIGNATURE + b"picture")
    assert place.read_bytes() == b"something else"
    place.unlink()
    write_picture(place, PNG_SIGNATURE + b"a long picture")
    write_picture(place, PNG_SIGNATURE + b"picture")
    assert place.read_bytes() == PNG_SIGNATURE + b"picture"
    place.unlink()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError):
        write_picture(place, PNG_SIGNATURE)
    assert not (tmp_path / "elsewhere").exists()
