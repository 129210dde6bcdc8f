"""Builds the C module `_lane`. It calls the cipher and the locks by the addresses that Python gives it."""

from __future__ import annotations

import re
from pathlib import Path

import cffi

HERE = Path(__file__).parent


def _declarations() -> str:
    """Return the header's declarations, without the preprocessor's lines, which cffi does not read."""
    text = (HERE / "lane.h").read_text(encoding="utf-8")
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


ffibuilder = cffi.FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "lukshdrfs.fuse._lane",
    '#include "lane.h"',
    # relative to setup.py's folder, where builds start: setuptools refuses absolute paths
    sources=["lukshdrfs/fuse/lane.c"],
    depends=["lukshdrfs/fuse/lane.h", "lukshdrfs/cipher/sector_cipher.h", "lukshdrfs/volume/sector_locks.h"],
    include_dirs=["lukshdrfs/fuse", "lukshdrfs/cipher", "lukshdrfs/volume"],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
    libraries=["pthread"],
)
