"""Builds the C module `_block_scan`."""

from __future__ import annotations

import re
from pathlib import Path

import cffi

HERE = Path(__file__).parent


def _declarations() -> str:
    """Return the header's declarations, without the preprocessor's lines, which cffi does not read."""
    text = (HERE / "block_scan.h").read_text(encoding="utf-8")
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


ffibuilder = cffi.FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "lukshdrfs.payload._block_scan",
    '#include "block_scan.h"',
    # relative to setup.py's folder, where builds start: setuptools refuses absolute paths
    sources=["lukshdrfs/payload/block_scan.c"],
    depends=["lukshdrfs/payload/block_scan.h"],
    include_dirs=["lukshdrfs/payload"],
    # half as fast again as with -O2, which leaves the loops over bytes as they are
    extra_compile_args=["-O3", "-Wall", "-Wextra"],
)
