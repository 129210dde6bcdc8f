"""How long a disk has to be for what is on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.tools import program

from lukshdrfs.recognition.claimed_size import claimed_size

MIB = 1 << 20
MADE = {
    "ext2": ["mkfs.ext2", "-q", "-b", "1024"],
    "ext4": ["mkfs.ext4", "-q"],
    "ext4 without 64 bit": ["mkfs.ext4", "-q", "-O", "^64bit"],
    "XFS": ["mkfs.xfs", "-q"],
}


@pytest.mark.needs("mkfs.ext4", "mkfs.xfs")
@pytest.mark.parametrize("name", MADE)
def test_file_systems_take_their_whole_disk(name: str, tmp_path: Path) -> None:
    """As the programs make them, to the last block."""
    size = 320 * MIB
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(size)
    subprocess.run([program(MADE[name][0]), *MADE[name][1:], disk], check=True, capture_output=True)
    with disk.open("rb", buffering=0) as stream:
        start = stream.read(MIB)
    found = claimed_size(lambda count, offset: start[offset : offset + count])
    assert found == (f"{name.split(maxsplit=1)[0].rstrip('24')} file system", size)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_partition_table_names_the_last_sector(sector_size: int) -> None:
    """Where the copy of a GPT is."""
    disk = bytearray(64 << 10)
    disk[sector_size : sector_size + 8] = b"EFI PART"
    disk[sector_size + 32 : sector_size + 40] = (9999).to_bytes(8, "little")
    assert claimed_size(lambda count, offset: bytes(disk[offset : offset + count])) == (
        "partition table",
        10000 * sector_size,
    )


def test_other_formats_by_their_superblocks() -> None:
    """btrfs counts the bytes of each of its devices, NTFS the sectors of its own size."""
    btrfs = bytearray(128 << 10)
    btrfs[0x10040:0x10048] = b"_BHRfS_M"
    btrfs[0x100D1:0x100D9] = (123 * MIB).to_bytes(8, "little")
    assert claimed_size(lambda count, offset: bytes(btrfs[offset : offset + count])) == (
        "btrfs file system",
        123 * MIB,
    )
    ntfs = bytearray(512)
    ntfs[3:13] = b"NTFS    " + (512).to_bytes(2, "little")
    ntfs[0x28:0x30] = (2047).to_bytes(8, "little")
    assert claimed_size(lambda count, offset: bytes(ntfs[offset : offset + count])) == ("NTFS file system", MIB)


@pytest.mark.parametrize("disk", [b"", bytes(512), bytes(MIB), b"\xff" * MIB, bytes(range(256)) * 4096])
def test_nothing_is_claimed_by_what_is_none_of_them(disk: bytes) -> None:
    """Whatever else is there says nothing of its length."""
    assert claimed_size(lambda count, offset: disk[offset : offset + count]) is None
