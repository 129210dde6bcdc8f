"""Copies of headers that are about to be overwritten."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from lukshdrfs.cli.output import write_header_out
from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.errors import InUse
from lukshdrfs.headers import (
    create_header_file,
)


def keep(arguments: argparse.Namespace, target: str, data: bytes) -> None:
    """Save what is about to be overwritten, and say where."""
    if arguments.keep:
        write_header_out(arguments.keep, data)
        kept = arguments.keep
    else:
        folder = Path(os.path.realpath(target)).parent
        folder = Path.cwd() if folder.is_relative_to("/dev") else folder
        names = (folder / f"{Path(target).name}.before{n or ''}" for n in count())
        kept = str(_first_free(names, data))
    sys.stderr.write(f"what was there is kept in {printable(kept)}\n")


def _first_free(names: Iterator[Path], data: bytes) -> Path:
    """Write a file of the first name that nothing has, and return it."""
    for name in names:
        with suppress(InUse):  # the next one, then
            create_header_file(name, data)
            return name
    raise AssertionError("there are as many names as numbers")
