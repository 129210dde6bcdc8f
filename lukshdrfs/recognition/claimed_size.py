"""
How long a disk has to be for what is on it: by this it is seen that its end was cut off.

Sources: the Linux kernel's fs/ext4/ext4.h (`struct ext4_super_block`), fs/xfs/libxfs/xfs_format.h (`struct xfs_dsb`),
include/uapi/linux/btrfs_tree.h (`struct btrfs_super_block`, `struct btrfs_dev_item`), fs/ntfs3/ntfs.h (`struct
NTFS_BOOT`); UEFI specification 2.10, "GUID Partition Table" (the header's AlternateLBA is the disk's last sector).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from lukshdrfs.sectors import SECTOR_SIZES

_ENOUGH = (64 << 10) + 4096
"""Bytes from the start on that have all superblocks."""
_EXT_SUPERBLOCK = 1024
_EXT_64BIT = 0x80
_BTRFS_SUPERBLOCK = 64 << 10


def claimed_size(read: Callable[[int, int], bytes]) -> tuple[str, int] | None:
    """
    Return what is on a disk and how many bytes it takes; None if that is not known.

    `read` returns so many bytes from an offset on, fewer at the end.
    """
    start = read(_ENOUGH, 0)
    start += bytes(_ENOUGH - len(start))
    for sector_size in SECTOR_SIZES:
        if start[sector_size : sector_size + 8] == b"EFI PART":
            (last,) = struct.unpack_from("<Q", start, sector_size + 32)
            return "partition table", (int(last) + 1) * sector_size
    for what, size_of in (("ext", _ext), ("XFS", _xfs), ("btrfs", _btrfs), ("NTFS", _ntfs)):
        if found := size_of(start):
            return f"{what} file system", found
    return None


def _ext(start: bytes) -> int:
    low, log_block_size = (struct.unpack_from("<I", start, _EXT_SUPERBLOCK + at)[0] for at in (0x4, 0x18))
    magic, incompatible = struct.unpack_from("<H38xI", start, _EXT_SUPERBLOCK + 0x38)
    (high,) = struct.unpack_from("<I", start, _EXT_SUPERBLOCK + 0x150)
    if magic != 0xEF53 or log_block_size > 6:
        return 0
    blocks = int(low) | (int(high) << 32 if incompatible & _EXT_64BIT else 0)
    return blocks << (10 + int(log_block_size))


def _xfs(start: bytes) -> int:
    magic, block_size, blocks = struct.unpack_from(">4sIQ", start)
    return int(block_size * blocks) if magic == b"XFSB" else 0


def _btrfs(start: bytes) -> int:
    if start[_BTRFS_SUPERBLOCK + 0x40 :][:8] != b"_BHRfS_M":
        return 0
    (size,) = struct.unpack_from("<Q", start, _BTRFS_SUPERBLOCK + 0xC9 + 8)  # of this device, in its dev_item
    return int(size)


def _ntfs(start: bytes) -> int:
    if start[3:11] != b"NTFS    ":
        return 0
    (sector_size,) = struct.unpack_from("<H", start, 0xB)
    (sectors,) = struct.unpack_from("<Q", start, 0x28)
    return int((sectors + 1) * sector_size)  # the last one has a copy of the first
