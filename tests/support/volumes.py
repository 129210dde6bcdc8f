"""Volumes for tests to work on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from support.cryptsetup import Format, LuksFiles

MIB = 1 << 20
SECRET = b"correct horse\nbattery \x00 staple"  # a newline and a NUL: key files are exact


class MakeVolume(Protocol):
    """Makes a volume in a folder of its own."""

    def __call__(self, layout: Format = ..., size: int = ...) -> LuksFiles: ...


def new_files(folder: Path, size: int) -> LuksFiles:
    """Return the files of a volume: a payload of zero bytes, a key file, and no header yet."""
    files = LuksFiles(folder / "payload.img", folder / "header.img", folder / "key")
    files.key_file.write_bytes(SECRET)
    with files.payload.open("wb") as stream:
        os.truncate(stream.fileno(), size)
    return files
