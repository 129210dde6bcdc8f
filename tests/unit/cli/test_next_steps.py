"""The lines that `mount` shows to go on with: they fit what is on the image, and who reads them."""

from __future__ import annotations

import shlex
import struct
import subprocess
from pathlib import Path

import pytest
from support.tools import program

from lukshdrfs.cli.commands.mount.next_steps import Steps
from lukshdrfs.fuse import MountOptions
from lukshdrfs.recognition.content import NOTHING, Content, content_of

MIB = 1 << 20


def look(path: Path) -> Content:
    """Return what is on a file."""
    data = path.read_bytes()
    return content_of(len(data), lambda size, offset: data[offset : offset + size])


def lines(content: Content, volume: int = 4096, **others: object) -> list[str]:
    """Return the commands that are shown for a content on a volume with sectors of this size."""
    options = MountOptions("/a directory", "payload", kernel_options=others.pop("kernel", ()))  # type: ignore[arg-type]
    given = {"read_only": False, "root": True, **others}
    steps = Steps(options, content=content, volume_sector_size=volume, **given)  # type: ignore[arg-type]
    return steps.lines()[1:-1]


MADE = {
    "ext4 in small blocks": (["mkfs.ext4", "-q", "-b", "1024"], Content("ext4", block_size=1024)),
    "ext4": (["mkfs.ext4", "-q", "-b", "4096"], Content("ext4", block_size=4096)),
    "ext2": (["mkfs.ext2", "-q", "-b", "2048"], Content("ext2", block_size=2048)),
    "swap": (["mkswap"], Content("swap")),
}


@pytest.mark.needs("mkfs.ext4")
@pytest.mark.parametrize("name", MADE)
def test_what_is_recognised(name: str, tmp_path: Path) -> None:
    """libblkid says what is there, and the blocks of a file system."""
    command, expected = MADE[name]
    disk = tmp_path / "disk"
    with disk.open("wb") as stream:
        stream.truncate(16 * MIB)
    subprocess.run([program(command[0]), *command[1:], disk], check=True, capture_output=True)
    assert look(disk) == expected


@pytest.mark.parametrize("sector_size", [512, 1024, 2048, 4096])
def test_partition_tables_count_in_their_disks_sectors(sector_size: int, tmp_path: Path) -> None:
    """That of a GPT is where its header is; that of a PC's partition table is told by where its partitions begin."""
    disk = bytearray(16 * MIB)
    disk[510:512] = b"\x55\xaa"
    begin = MIB // sector_size
    disk[446:462] = struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", begin, 4 * MIB // sector_size)
    (tmp_path / "dos").write_bytes(disk)
    assert look(tmp_path / "dos") == Content("dos", partitioned=True, block_size=sector_size)
    disk[sector_size : sector_size + 8] = b"EFI PART"
    (tmp_path / "gpt").write_bytes(disk)
    assert look(tmp_path / "gpt") == Content("gpt", partitioned=True, block_size=sector_size)


@pytest.mark.parametrize("size", [0, 512, 4096, 3 * MIB])
def test_nothing_is_recognised_where_nothing_is(size: int) -> None:
    """Zeros are nothing, however few."""
    assert content_of(size, lambda count, offset: bytes(min(count, max(0, size - offset)))) == NOTHING


@pytest.mark.parametrize(
    ("content", "volume", "expected"),
    [
        (NOTHING, 512, None),
        (NOTHING, 4096, None),  # what is made on the file itself has other sectors
        (Content("ext4", block_size=1024), 4096, 1024),
        (Content("ext4", block_size=4096), 4096, 4096),
        (Content("ext4", block_size=4096), 512, None),
        (Content("xfs", block_size=512), 4096, None),
        (Content("vfat", block_size=512), 4096, None),
        (Content("LVM2_member"), 4096, 4096),
        (Content("LVM2_member"), 512, None),
        (Content("gpt", partitioned=True, block_size=512), 4096, None),
        (Content("gpt", partitioned=True, block_size=4096), 4096, 4096),
        (Content("gpt", partitioned=True, block_size=4096), 512, 4096),
    ],
)
def test_loop_devices_have_the_sectors_that_the_content_needs(
    content: Content, volume: int, expected: int | None
) -> None:
    """`--sector-size` is there only where what is on the image was made for it; partitions are looked for."""
    words = shlex.split(lines(content, volume)[0])

    assert words[0] == "losetup"
    assert words[-1] == "/a directory/image"
    assert ("--sector-size" in words) == (expected is not None)
    if expected:
        assert words[words.index("--sector-size") + 1] == str(expected)
    assert ("--partscan" in words) == content.partitioned


def test_qemu_shows_a_partition_table_in_its_sectors() -> None:
    """The guest's disk has the sectors that the table counts in."""
    assert "logical_block_size=4096" in lines(Content("gpt", partitioned=True, block_size=4096))[-1]
    assert "logical_block_size" not in lines(Content("gpt", partitioned=True, block_size=512))[-1]
    assert "logical_block_size" not in lines(NOTHING)[-1]


def test_what_is_not_for_root_alone() -> None:
    """Who is not root gets what works without: no loop device, but programs that read the file itself."""
    empty = lines(NOTHING, root=False)
    assert not any("losetup" in line for line in empty)
    assert any("mkfs.ext4 -E root_owner=" in line for line in empty)
    ext4 = lines(Content("ext4", block_size=4096), root=False)
    assert [line.split()[0] for line in ext4] == ["fuse2fs", "debugfs", "qemu-system-x86_64"]
    assert "-w" in ext4[1]
    xfs = lines(Content("xfs", block_size=512), root=False)
    assert [line.split()[0] for line in xfs] == ["qemu-system-x86_64"]


@pytest.mark.parametrize("option", ["allow_other", "allow_root"])
def test_who_lets_root_in_has_loop_devices(option: str) -> None:
    """Then udisks can make one; where it takes sectors of its own, root has to."""
    assert any(line.startswith("  udisksctl") for line in lines(NOTHING, root=False, kernel=(option,)))
    gpt = lines(Content("gpt", partitioned=True, block_size=4096), root=False, kernel=(option,))
    assert any(line.startswith("  sudo losetup") and "--sector-size 4096" in line for line in gpt)


def test_read_only_is_said_to_all() -> None:
    """Each line has its program's own word for it, and none would write."""
    shown = [
        *lines(Content("ext4", block_size=4096), read_only=True),
        *lines(Content("ext4", block_size=4096), read_only=True, root=False, kernel=("allow_root",)),
    ]
    assert not any("mkfs" in line for line in [*shown, *lines(NOTHING, read_only=True, root=False)])
    for line in shown:
        assert any(word in line for word in ("--read-only", "readonly=on", "-o ro", "debugfs")), line
        assert "-w" not in line


def test_a_comma_in_the_path_is_one_for_qemu() -> None:
    """QEMU splits its options at commas, and takes two for one."""
    options = MountOptions("/with, comma", "payload")
    steps = Steps(options, read_only=False, content=NOTHING, volume_sector_size=512, root=True)
    assert "file=/with,, comma/image,format=raw" in steps.lines()[-2]
