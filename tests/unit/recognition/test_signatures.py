"""What is recognised, and where; and what is not: ciphertext, whatever two bytes it has by chance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.foreign import ARCHIVES, IMAGES, make_ext4, make_gpt, make_swap, random_file, write_at, zero
from support.volumes import MIB

from lukshdrfs.recognition import DescriptorSource, erase, known_signature_of, names_of, recognise
from lukshdrfs.recognition.magics import FILE_FORMATS, LUKS_HEADERS, Magic, SourceBytes

START = 70_000
"""Bytes from the start that the short magics below are in."""

SHORT = {
    "ext": (1080, [b"\x53\xef"]),
    "HFS": (1024, [b"BD"]),
    "HFS+": (1024, [b"H+", b"HX"]),
    "minix": (1040, [b"\x7f\x13", b"\x8f\x13", b"\x68\x24", b"\x78\x24", b"\x13\x7f"]),
    "minix 3": (1048, [b"\x5a\x4d", b"\x4d\x5a"]),
    "MBR": (510, [b"\x55\xaa"]),
    "FAT": (0, [b"\xeb", b"\xe9"]),
    "NILFS": (1030, [b"\x34\x34"]),
    "LVM1": (0, [b"HM"]),
    "FileVault": (88, [b"CS"]),
    "gzip": (0, [b"\x1f\x8b\x08"]),
    "bzip2": (0, [b"BZh9"]),
    "JPEG": (0, [b"\xff\xd8\xff"]),
}
"""Magics that random bytes have once in 65,536 times, or not much less often, by what they are of."""


@pytest.fixture
def source() -> Iterator[DescriptorSource]:
    """Return 16 MiB in memory."""
    descriptor = os.memfd_create("source")
    os.truncate(descriptor, 16 * MIB)
    yield DescriptorSource(descriptor)
    os.close(descriptor)


def name_of(path: Path, start: int = 0, size: int | None = None, *, thorough: bool = False) -> str:
    """Return what is recognised on a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return names_of(recognise(DescriptorSource(descriptor), start, size, thorough=thorough))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("what", SHORT)
def test_a_short_magic_in_random_bytes_is_chance(what: str, source: DescriptorSource) -> None:
    """A payload that has two bytes of a superblock where they belong, and random ones around, is ciphertext."""
    offset, magics = SHORT[what]
    for magic in magics:
        for _ in range(60 // len(magics)):
            data = bytearray(os.urandom(START))
            data[offset : offset + len(magic)] = magic
            os.pwrite(source.descriptor, data, 0)
            assert recognise(source, thorough=True) == ()


def test_random_bytes_are_nothing(source: DescriptorSource) -> None:
    """Neither as they are nor as a part of something."""
    for _ in range(200):
        os.pwrite(source.descriptor, os.urandom(START), 0)
        assert recognise(source) == ()
        assert recognise(source, 512, MIB) == ()


@pytest.mark.parametrize("magic", [*FILE_FORMATS, *LUKS_HEADERS], ids=lambda magic: magic.what)
def test_every_entry_is_found_at_each_of_its_places(magic: Magic) -> None:
    """And only there: not a byte further on; a place that counts from the end does so from a part's end, too."""
    for offset in magic.offsets:
        size = 65536 + max(offset, 0)
        data = bytearray(size)
        content = example(magic)
        at = offset if offset >= 0 else size + offset
        data[at : at + len(content)] = content
        del data[size:]
        found = [one for one in recognise(SourceBytes(bytes(data))) if one.name == magic.what]
        assert [(one.offset, one.kind) for one in found] == [(at, magic.kind)]
        part = recognise(SourceBytes(bytes(4096) + data + bytes(4096)), 4096, size)
        assert [one.offset for one in part if one.name == magic.what] == [4096 + at]
        if offset >= 0:
            assert magic.what not in names_of(recognise(SourceBytes(b"\0" + data)))


def example(magic: Magic) -> bytes:
    """Return bytes with which an entry's own check is content."""
    following = {
        "a qcow2 image": b"\0\0\0\3",
        "a QED image": (65536).to_bytes(4, "little"),
        "a VMDK descriptor": b" Disk DescriptorFile\nversion=1\n",
        "a DMG image": b"\0\0\0\4\0\0\2\0",
        "a sparse image of macOS": b"\0\0\0\3",
        "gzip data": b"\0" + bytes(5) + b"\3",
        "bzip2 data": b"91AY&SY",
        "lz4 data": b"\x64",
        "a tar archive": b"\x0000",
        "a JPEG picture": b"\xe0\0\x10JFIF",
        "an ELF program": b"\2\1\1",
    }
    return (magic.magic + following.get(magic.what, b"")).ljust(64, b"\0") if magic.check else magic.magic


@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_qemu_makes(kind: str, tmp_path: Path) -> None:
    """By their names, and as images."""
    make, word = IMAGES[kind]
    make(tmp_path / "image")
    assert word in name_of(tmp_path / "image")


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(kind: str, tmp_path: Path) -> None:
    """As other programs make them."""
    make, word = ARCHIVES[kind]
    make(tmp_path / "archive")
    assert word in name_of(tmp_path / "archive")


@pytest.mark.needs("mkfs.ext4", "mkswap")
def test_what_libblkid_knows_is_found_at_any_offset(tmp_path: Path) -> None:
    """From the first byte of the part that is asked about; from any other, it is not there."""
    path = tmp_path / "file"
    random_file(path)
    make_ext4(path, MIB)
    assert name_of(path) == ""
    assert name_of(path, MIB) == "ext4"
    assert name_of(path, MIB, MIB) == "ext4"
    assert name_of(path, MIB + 512) == ""
    make_swap(path)
    assert name_of(path) == "swap"


@pytest.mark.needs("sfdisk")
def test_a_partition_table_of_which_the_copy_is_left(tmp_path: Path) -> None:
    """It counts where all is overwritten; not where a volume is, whose old disk's table it may be."""
    path = tmp_path / "file"
    random_file(path, 8 * MIB)
    zero(path, 0, MIB)
    make_gpt(path)
    assert name_of(path) == "gpt"
    zero(path, 0, MIB)
    assert name_of(path) == ""
    assert name_of(path, thorough=True) == "gpt"


@pytest.mark.needs("mkfs.ext4", "sfdisk")
def test_what_is_erased_is_not_recognised_any_more(tmp_path: Path) -> None:
    """All of it: a file system, both copies of a partition table, an image's footer; and nothing but their magics."""
    path = tmp_path / "file"
    random_file(path, 8 * MIB)
    zero(path, 0, MIB)
    make_gpt(path)
    before = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    try:
        source = DescriptorSource(descriptor)
        erase(source, lambda data, offset: os.pwrite(descriptor, data, offset))
        assert recognise(source, thorough=True) == ()
    finally:
        os.close(descriptor)
    after = path.read_bytes()
    assert sum(one != other for one, other in zip(before, after, strict=True)) <= 2 * len(b"EFI PART") + 2
    make_ext4(path)
    write_at(path, -512, b"conectix")
    assert name_of(path) == "ext4, a VHD image"
    with path.open("r+b") as stream:
        erase(DescriptorSource(stream.fileno()), lambda data, offset: os.pwrite(stream.fileno(), data, offset))
    assert name_of(path, thorough=True) == ""


@pytest.mark.needs("mkfs.ext4")
def test_what_has_no_descriptor_is_looked_at_in_a_copy(tmp_path: Path) -> None:
    """An export, or a volume's plaintext: by its ends."""
    path = tmp_path / "file"
    random_file(path)
    make_ext4(path)
    data = path.read_bytes()

    def read_into(buffer: memoryview, offset: int) -> None:
        buffer[:] = data[offset : offset + len(buffer)]

    assert known_signature_of(len(data), read_into) == "ext4"
    assert names_of(recognise(SourceBytes(b"\xeb\x58\x90-FVE-FS-" + bytes(4096)))) == "BitLocker"


def test_nothing_is_recognised_in_nothing() -> None:
    """Neither in an empty payload nor in a byte."""
    assert recognise(SourceBytes(b"")) == ()
    assert recognise(SourceBytes(b"\0")) == ()
