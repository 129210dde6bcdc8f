"""Mending a header from what is known about it, without any key."""

from __future__ import annotations

import os

from lukshdrfs.errors import HeaderError
from lukshdrfs.headers.file import HeaderFile, locked_for_writing
from lukshdrfs.headers.source import parse_from
from lukshdrfs.headers.tolerance import Tolerance
from lukshdrfs.luks.header import PREFIX_SIZE, is_luks1
from lukshdrfs.luks.luks1.repair import repair_luks1
from lukshdrfs.luks.luks2.edit import rewrite_damaged_copy
from lukshdrfs.payload.writing import sync_descriptor, write_all


def repair_header(name: str, *, force: bool = False) -> tuple[str, ...]:
    """
    Repair a header in its place; return what was wrong, in a line each, nothing if it was sound.

    With `force`, a header in whose place something else is recognised is repaired too. Raises HeaderError if it is
    beyond repair, DeviceError if it cannot be written, InUse if another program is editing it.
    """
    with locked_for_writing(name, alone=True) as descriptor:
        prefix = os.pread(descriptor, PREFIX_SIZE, 0)
        if is_luks1(prefix):
            return _repair_luks1(descriptor, name, prefix)
        header = parse_from(descriptor, name, tolerance=Tolerance(foreign_signature=force), warn=False)
        if header.warnings:
            HeaderFile(descriptor, name, header).apply(rewrite_damaged_copy(header))
        return header.warnings


def _repair_luks1(descriptor: int, name: str, prefix: bytes) -> tuple[str, ...]:
    try:
        found, edit = repair_luks1(prefix, os.lseek(descriptor, 0, os.SEEK_END))
    except HeaderError as error:
        raise HeaderError(f"header {name}: {error}") from None
    for write in (write for step in edit.steps for write in step):
        write_all(descriptor, write.data, write.offset, f"header {name}")
    sync_descriptor(descriptor, f"header {name}")
    return found
