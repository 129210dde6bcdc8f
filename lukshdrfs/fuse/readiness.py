"""
Having in memory what serving needs, before the first request.

Whoever serves a disk must not need memory to do so: when there is none, the kernel writes to that very disk to get
some. Buffers, stacks and ciphers are touched where they are made (threads/ready_memory.c, `Volume.native`); here
it is the code.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
from pathlib import Path

log = logging.getLogger(__name__)

_LIBRARIES = (
    r"/(ld-linux|libc|libm|libpthread|libgcrypt|libgpg-error|libcrypto|libnbd|libgnutls)[-.][^/]*so|"
    r"/lukshdrfs/[^/]+/_[^/]+\.so"
)
"""Whose code and data requests take."""
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # madvise(2): Linux 5.14
_libc = ctypes.CDLL(None, use_errno=True)


def load_code() -> None:
    """Have the code that serves requests in memory, so that it need not be read when there is no memory for that."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1].startswith("r") and re.search(_LIBRARIES, fields[5]):
            start, end = (int(each, 16) for each in fields[0].split("-"))
            _populate(start, end, writable=fields[1][1] == "w")


def _populate(start: int, end: int, *, writable: bool) -> None:
    advice = _POPULATE_WRITE if writable else _POPULATE_READ
    if _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice) == 0:
        return
    log.debug("this kernel populates no memory by madvise(2); each page is read")
    for page in range(start, end, mmap.PAGESIZE):
        ctypes.string_at(page, 1)
