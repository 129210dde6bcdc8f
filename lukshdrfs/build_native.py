"""Builds the C modules: what of each header Python sees, and what it links with. setup.py names them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import cffi

HERE = Path(__file__).parent


def _pkg_config(*words: str) -> list[str]:
    found = subprocess.run(
        ["pkg-config", *words, "libcrypto", "libgcrypt"], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise SystemExit(f"{found.stderr.strip()}: install libssl-dev and libgcrypt20-dev (Debian, Ubuntu)")
    return found.stdout.split()


def _module(
    room: str,
    name: str,
    *sources: str,
    beside: tuple[str, ...] = (),
    shared: tuple[str, ...] = (),
    python: str = "",
    optimise: str = "-O2",
    **more: Any,
) -> cffi.FFI:
    """
    Return the builder of `lukshdrfs.ROOM._NAME`, which shows what ROOM/NAME.h declares.

    `sources` are C files without their ending, of the same room; `shared` are more of them, of native/; `beside` are
    other rooms whose headers are included;
    `python` declares functions that C calls.
    Paths are relative to setup.py's folder, where builds start: setuptools refuses absolute ones.
    """
    declarations = (HERE / room / f"{name}.h").read_text(encoding="utf-8")
    builder = cffi.FFI()
    builder.cdef(re.sub(r"^#.*$", "", declarations, flags=re.MULTILINE) + python)  # cffi reads no preprocessor's lines
    rooms = (room, "native", *beside)
    folders = [f"lukshdrfs/{each}" for each in rooms]
    flags = [optimise, "-Wall", "-Wextra", *more.pop("extra_compile_args", ())]
    builder.set_source(
        f"lukshdrfs.{room}._{name}",
        f'#include "{name}.h"',
        sources=[
            *(f"lukshdrfs/{room}/{source}.c" for source in sources or (name,)),
            *(f"lukshdrfs/native/{source}.c" for source in shared),
        ],
        depends=[str(header.relative_to(HERE.parent)) for each in rooms for header in (HERE / each).glob("*.h")],
        include_dirs=folders,
        extra_compile_args=flags,
        libraries=more.pop("libraries", ["pthread"]),
        **more,
    )
    return builder


sector_cipher = _module(
    "cipher", "sector_cipher", extra_compile_args=_pkg_config("--cflags"), extra_link_args=_pkg_config("--libs")
)
sector_locks = _module("volume", "sector_locks")
block_scan = _module("payload", "block_scan", optimise="-O3")  # half as fast again as with -O2
file_writes = _module("payload", "file_writes")
nbd_client = _module(
    "payload", "nbd_client", "nbd_client", "nbd_session", "nbd_connection", "nbd_transmission", "nbd_library",
    "unflushed_writes", shared=("confinement", "ready_memory"),
    python='extern "Python" void nbd_client_told(uintptr_t, int, char *);', libraries=["dl", "pthread"],
)  # fmt: skip
confined_process = _module("payload", "confined_process")
# it calls the cipher, the locks and the payload by the addresses that Python gives it
lane = _module("fuse", "lane", "lane", "coherence", shared=("confinement", "ready_memory"), beside=("cipher", "volume"))
