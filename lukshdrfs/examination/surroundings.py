"""What surrounds a payload says about it, however random its bytes: its size, its name, the files beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from lukshdrfs.errors import LukshdrfsError
from lukshdrfs.findings import Finding
from lukshdrfs.payload.file import FilePayload
from lukshdrfs.recognition.magics import Magic, known_magics

_SECTOR = 512
_MIB = 1 << 20
_GIB = 1 << 30
_MOST_NEIGHBOURS = 4096
_TELLING_ENDINGS = {".luks", ".hdr", ".header", ".crypt", ".vc", ".tc"}
_IMAGE_ENDINGS = {".img", ".image", ".raw"}


def size_findings(size: int, headers: Mapping[int, str]) -> list[Finding]:
    """
    Return what a size (bytes) suggests.

    `headers` are sizes of headers and what they are called: a round number and one of these is suspicious.
    """
    found = []
    if size % _SECTOR:
        text = (
            f"{size} bytes are not whole sectors of {_SECTOR}: no disk and no volume has such a size, so it suggests "
            f"a file of another kind, or one that was cut off; the last {size % _SECTOR} bytes can hold no data"
        )
        found.append(Finding("warning", "size", text))
    elif size % _MIB:
        text = f"{size} bytes are whole sectors, but not whole MiB: it suggests a copy of a disk or of a partition"
        found.append(Finding("note", "size", text))
    for header, name in headers.items():
        rest = size - header
        if rest >= 4 * header and _is_round(rest) and not _is_round(size):
            text = f"{size} bytes are {_in_words(rest)} and {_in_words(header)}, which is the size of {name}"
            found.append(Finding("warning", "size", text))
    return found


def _is_round(size: int) -> bool:
    return size % _GIB == 0 or size & (size - 1) == 0


def _in_words(size: int) -> str:
    return f"{size // _GIB} GiB" if size % _GIB == 0 else f"{size // _MIB} MiB"


def neighbour_findings(name: str, magics: Iterable[Magic]) -> list[Finding]:
    """
    Return what the name of a payload says, and those files in its directory that have one of `magics`.

    Only the first 4096 files of a directory are looked at; what cannot be read is passed over. Of a device, whose
    neighbours are the other devices, nothing is said.
    """
    path = Path(os.path.realpath(name))
    if not path.is_file():
        return []
    found = []
    ending = path.suffix.lower()
    if ending in _TELLING_ENDINGS:
        found.append(Finding("warning", "name", f"{path.name} is what one calls something encrypted"))
    elif ending in _IMAGE_ENDINGS:
        found.append(Finding("note", "name", f"{path.name} is what one calls the image of a disk"))
    for neighbour, what in _marked_neighbours(path, tuple(magics)):
        text = f"{neighbour} in the same directory is {what}: who sees both knows what this is"
        found.append(Finding("warning", "neighbour", text))
    return found


def _marked_neighbours(path: Path, magics: tuple[Magic, ...]) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(entry.name for entry in islice(entries, _MOST_NEIGHBOURS) if entry.name != path.name)
    except OSError:
        return
    for name in names:
        neighbour = path.parent / name
        try:
            if not stat.S_ISREG(neighbour.lstat().st_mode):
                continue
            with FilePayload.open(neighbour, read_only=True, locked=False) as file:
                marks = known_magics(file, magics)
        except (OSError, LukshdrfsError):
            continue
        if marks:
            yield name, marks[0][1].what
        elif neighbour.suffix.lower() in _TELLING_ENDINGS:
            yield name, "by its name a header or a volume"
