"""
Which file may know which: what import-linter is to Python, this is to C, and to the documents that name files.

A room is a folder of the package. Rooms lie on floors; an include goes down, or stays in its room.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.native import NATIVE, PACKAGE

ROOT = PACKAGE.parent
FLOORS = ("threads", "cipher", "payload", "payload/nbd", "payload/qemu", "volume", "fuse/lane")
"""From below. What is on top of another may include it."""
MOST_LINES = 350
ABOVE_PARTS = {"worker.c", "data_requests.c", "fallocate.c", "lane.c"}
"""The files that put the lane's parts together, and the only ones that see all of them."""

SOURCES = sorted(file for pattern in ("*.c", "*.h") for file in PACKAGE.rglob(pattern))
CODE = sorted([*SOURCES, *PACKAGE.rglob("*.py")])


def room_of(file: Path) -> str:
    """Return a file's room."""
    return file.relative_to(PACKAGE).parent.as_posix()


def includes(file: Path) -> list[str]:
    """Return our own headers that a file includes."""
    return re.findall(r'^#include "([^"]+)"', file.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_an_include_goes_down(file: Path) -> None:
    """It names a header by its room, which is not above the file's own."""
    for name in includes(file):
        assert (PACKAGE / name).is_file(), name
        room = room_of(PACKAGE / name)
        if room != room_of(file):
            assert FLOORS.index(room) < FLOORS.index(room_of(file)), name


def test_a_part_of_the_lane_does_not_see_the_others() -> None:
    """The list of all parts is for those who put them together."""
    seers = {file.name for file in SOURCES if "fuse/lane/parts.h" in includes(file)}
    assert seers == ABOVE_PARTS


def test_every_c_file_is_built() -> None:
    """The build's list is complete, and everything in it is there."""
    listed = {f"{room}/{name}.c" for room, names in NATIVE.items() for name in names}
    assert listed | {"examination/block_scan.c"} == {
        str(file.relative_to(PACKAGE)) for file in SOURCES if file.suffix == ".c"
    }
    assert list(NATIVE) == list(FLOORS)


def test_no_file_is_long() -> None:
    """What does not fit has two subjects."""
    long = {str(file.relative_to(ROOT)) for file in CODE if len(file.read_text("utf-8").splitlines()) > MOST_LINES}
    assert long == set()


def test_no_function_passes_through_python_as_a_number() -> None:
    """C calls C by name, and the compiler checks it."""
    for file in CODE:
        assert "uintptr_t)sector" not in file.read_text("utf-8"), file
        assert not re.search(r"uintptr_t (?!\)|about)\w+", file.read_text("utf-8")), file


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(name: str) -> None:
    """A document that names a file of the package names one that is there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z0-9_]+/)+[a-z0-9_]+\.(?:py|c|h))`", text))
    assert named
    missing = {each for each in named if not (PACKAGE / each).exists() and not (ROOT / each).exists()}
    assert missing == set()
