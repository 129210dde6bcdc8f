"""Builds the C module `_sector_cipher`: what of sector_cipher.h Python sees, and what it links with."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import cffi

HERE = Path(__file__).parent


def _pkg_config(*words: str) -> list[str]:
    found = subprocess.run(
        ["pkg-config", *words, "libcrypto", "libgcrypt"], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise SystemExit(f"{found.stderr.strip()}: install libssl-dev and libgcrypt20-dev (Debian, Ubuntu)")
    return found.stdout.split()


def _declarations() -> str:
    """Return the header's declarations, without the preprocessor's lines, which cffi does not read."""
    text = (HERE / "sector_cipher.h").read_text(encoding="utf-8")
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


ffibuilder = cffi.FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "lukshdrfs.cipher._sector_cipher",
    '#include "sector_cipher.h"',
    # relative to setup.py's folder, where builds start: setuptools refuses absolute paths
    sources=["lukshdrfs/cipher/sector_cipher.c"],
    depends=["lukshdrfs/cipher/sector_cipher.h"],
    include_dirs=["lukshdrfs/cipher"],
    extra_compile_args=["-O2", "-Wall", "-Wextra", *_pkg_config("--cflags")],
    extra_link_args=_pkg_config("--libs"),
)
