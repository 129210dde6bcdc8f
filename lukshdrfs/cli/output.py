"""Where a header that is made goes: a new file, or standard output and other descriptors that are open already."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.headers import create_header_file

_STANDARD_OUTPUT = 1


def output_descriptor(name: str) -> int | None:
    """
    Return the descriptor that `-` (standard output) or `fd:N` names for writing to, None for a path.

    A shell's `>(command)` is a path, /dev/fd/N, which a process that is not dumpable cannot open; it is taken for fd:N.
    """
    if name in ("-", "/dev/stdout"):
        return _STANDARD_OUTPUT
    named = re.fullmatch(r"(?:fd:|/(?:dev|proc/self)/fd/)([0-9]{1,9})", name)
    return int(named[1]) if named else None


def check_output(name: str) -> None:
    """Raise UsageError for a terminal: a header is nothing to look at."""
    descriptor = output_descriptor(name)
    if descriptor is not None and os.isatty(descriptor):
        raise UsageError(f"{_described(name)} is a terminal; redirect it, or name a file")


def write_header_out(name: str, data: bytes) -> None:
    """
    Write a header to a new file, or to the descriptor that is named.

    Raises UsageError for a terminal, DeviceError if it cannot be written, and what `create_header_file` raises.
    """
    descriptor = output_descriptor(name)
    if descriptor is None:
        create_header_file(Path(name), data)
        return
    check_output(name)
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise DeviceError(f"{_described(name)}: {os.strerror(error.errno or 0)}") from None


def _described(name: str) -> str:
    return "standard output" if output_descriptor(name) == _STANDARD_OUTPUT else name
