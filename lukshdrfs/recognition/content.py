"""
What is on a disk, and in which sectors it counts: so that it is attached in such a way that it can be used.

A partition table counts in the sectors of the disk that it was made on, and is found nowhere with others. A file
system cannot be mounted on a disk whose sectors are larger than its blocks. Nothing on a disk says what sectors it had:
libblkid (its program) recognises what is there, and what it does not say is in the formats. UEFI specification 2.10,
"GUID Partition Table" (the header in the second sector); the partition table of a PC's boot sector at byte 446, of
which every partitioning program of today places the partitions at whole MiB.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from lukshdrfs.environment import for_children
from lukshdrfs.sectors import SECTOR_SIZES

Read = Callable[[int, int], bytes]
"""Returns so many bytes from an offset on; fewer at the end."""

_END = 1 << 20
"""Bytes at both ends that have the superblocks of nearly all file systems."""
_MIB = 1 << 20
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Content:
    """What is recognised on a disk."""

    kind: str = ""
    """In libblkid's words: `ext4`, `gpt`, `LVM2_member`, …; empty if nothing is recognised."""
    partitioned: bool = False
    block_size: int | None = None
    """
    Bytes of the sectors that a partition table was made for, or that a file system can be mounted in at most.

    None where it does not say.
    """


NOTHING = Content()


def content_of(size: int, read: Read) -> Content:
    """Return what is on a disk of `size` bytes; `NOTHING` also where blkid is not installed. Raises OSError."""
    start = read(_END, 0)
    for sector_size in SECTOR_SIZES:
        if start[sector_size : sector_size + 8] == b"EFI PART":
            return Content("gpt", partitioned=True, block_size=sector_size)
    fields = _probe(size, start, read(_END, max(0, size - _END)))
    kind = fields.get("TYPE", "")
    if kind:
        block_size = fields.get("BLOCK_SIZE", "")
        return Content(kind, block_size=int(block_size) if block_size.isdecimal() else None)
    table = fields.get("PTTYPE", "")
    return Content(table, partitioned=True, block_size=_sector_size_of_dos(start)) if table else NOTHING


def _sector_size_of_dos(start: bytes) -> int:
    """Return in which sectors all partitions begin at whole MiB; what most disks have, if in none."""
    entries = [struct.unpack_from("<II", start, 446 + 16 * number + 8) for number in range(4)]
    begins = [begin for begin, count in entries if begin and count]
    for sector_size in SECTOR_SIZES:
        if begins and all(begin * sector_size % _MIB == 0 for begin in begins):
            return sector_size
    return SECTOR_SIZES[0]


def _probe(size: int, start: bytes, end: bytes) -> dict[str, str]:
    """Return what libblkid says of a copy of both ends, in memory that is gone afterwards."""
    # ordinary users of Debian have no sbin in their PATH
    blkid = shutil.which("blkid", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if blkid is None:
        return {}
    copy = os.memfd_create("content", os.MFD_CLOEXEC)
    try:
        os.truncate(copy, size)
        os.pwrite(copy, start, 0)
        os.pwrite(copy, end, max(0, size - len(end)))
        done = subprocess.run(
            [blkid, "--probe", "--output", "export", "--", f"/proc/self/fd/{copy}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            pass_fds=[copy], env=for_children(), timeout=_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {}
    finally:
        os.close(copy)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
