"""Builds the C modules: which files there are, what of their headers Python sees, and what they link with."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import cffi

HERE = Path(__file__).parent

NATIVE = {
    "threads": ("confinement", "ready_memory", "ready_thread"),
    "cipher": ("gcrypt", "sector_cipher", "anti_forensic"),
    "payload": ("file_writes", "file_payload"),
    "payload/nbd": (
        "libnbd",
        "transmission",
        "connection",
        "unflushed_writes",
        "export",
        "replay",
        "session",
        "issued_command",
        "flushes",
        "blocks",
        "retrier",
        "client",
    ),
    "payload/qemu": ("confined_process",),
    "volume": ("sector_locks", "extent_map", "native_volume"),
    "fuse/lane": (
        "dev_fuse",
        "readers",
        "turns",
        "coherence",
        "answers",
        "flush_errors",
        "interrupts",
        "async_requests",
        "relay",
        "data_requests",
        "fallocate",
        "worker",
        "lane",
    ),
}
"""The C files of `lukshdrfs._native` by room, without their ending, the lower ones first."""

SHOWN = (
    "cipher/gcrypt.h",
    "cipher/sector_cipher.h",
    "cipher/anti_forensic.h",
    "payload/payload.h",
    "payload/file_payload.h",
    "payload/nbd/options.h",
    "payload/nbd/client.h",
    "payload/qemu/confined_process.h",
    "volume/sector_locks.h",
    "volume/extent_map.h",
    "volume/native_volume.h",
    "fuse/lane/lane.h",
)
"""The headers that Python sees."""

CALLED = 'extern "Python" void nbd_client_event(void *, int, const char *);'
"""Functions of Python's that C calls."""

WARNINGS = ("-Wall", "-Wextra")


def source_files(*rooms: str) -> list[str]:
    """Return the C files of some rooms, of all by default, as paths below the package."""
    return [f"{room}/{name}.c" for room in rooms or NATIVE for name in NATIVE[room]]


def _pkg_config(*words: str) -> list[str]:
    found = subprocess.run(
        ["pkg-config", *words, "libcrypto", "libgcrypt"], capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise SystemExit(f"{found.stderr.strip()}: install libssl-dev and libgcrypt20-dev (Debian, Ubuntu)")
    return found.stdout.split()


KNOWN = "typedef int... atomic_int;"
"""Types that the headers have from the C library."""


def _module(
    name: str, sources: list[str], shown: tuple[str, ...], *, flags: list[str], links: list[str], more: str
) -> cffi.FFI:
    """
    Return the builder of the module `lukshdrfs.NAME`, which shows what the headers `shown` and `more` declare.

    Paths are relative to setup.py's folder, where builds start: setuptools refuses absolute ones.
    """
    builder = cffi.FFI()
    builder.cdef(more)
    for header in shown:
        declarations = (HERE / header).read_text(encoding="utf-8")
        builder.cdef(re.sub(r"^#.*$", "", declarations, flags=re.MULTILINE))  # cffi reads no preprocessor's lines
    builder.set_source(
        f"lukshdrfs.{name}",
        "\n".join(f'#include "{header}"' for header in shown),
        sources=[f"lukshdrfs/{source}" for source in sources],
        depends=[str(header.relative_to(HERE.parent)) for header in sorted(HERE.rglob("*.h"))],
        include_dirs=["lukshdrfs"],
        extra_compile_args=[*flags, *WARNINGS, "-fvisibility=hidden"],
        extra_link_args=links,
        libraries=["dl", "pthread"],
    )
    return builder


native = _module(
    "_native",
    source_files(),
    SHOWN,
    flags=["-O2", *_pkg_config("--cflags")],
    links=_pkg_config("--libs"),
    more=KNOWN + CALLED,
)
# apart: -O3 makes it half as fast again, and nothing else
block_scan = _module(
    "examination._block_scan",
    ["examination/block_scan.c"],
    ("examination/block_scan.h",),
    flags=["-O3"],
    links=[],
    more="",
)
