"""Builds the C module `_sector_locks`."""

from __future__ import annotations

import re
from pathlib import Path

import cffi

HERE = Path(__file__).parent


def _declarations() -> str:
    """Return the header's declarations, without the preprocessor's lines, which cffi does not read."""
    text = (HERE / "sector_locks.h").read_text(encoding="utf-8")
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


ffibuilder = cffi.FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "lukshdrfs.volume._sector_locks",
    '#include "sector_locks.h"',
    # relative to setup.py's folder, where builds start: setuptools refuses absolute paths
    sources=["lukshdrfs/volume/sector_locks.c"],
    depends=["lukshdrfs/volume/sector_locks.h"],
    include_dirs=["lukshdrfs/volume"],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
    libraries=["pthread"],
)
