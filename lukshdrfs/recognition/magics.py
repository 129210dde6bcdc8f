"""
The list of our own: what libblkid does not look for, and LUKS headers that it does not take for one.

Images of virtual machines, copies of disks, archives, encrypted files, files of other kinds. Where an entry names no
source, file(1) knows it by the same bytes. Four bytes at one place are the least that an entry asks for, most ask for
more, so that random bytes have one of them less than once in fifty million times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["image", "table", "content"]
"""
`image`: bytes that have to be decoded by a program that knows their format; `table`: a partition table, beside whose
partitions something else may lie; `content`: what fills the place, a file system for instance.
"""

_BLOCK = 512
"""Bytes from a magic on that a further check can see."""


class Source(Protocol):
    """What is looked at: a payload, a volume, a descriptor."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer from byte `offset` on."""


class SourceBytes:
    """Bytes that have been read already, as a source."""

    def __init__(self, data: bytes) -> None:
        """Take the bytes."""
        self._data = data

    @property
    def size(self) -> int:
        """See Source."""
        return len(self._data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Source."""
        buffer[:] = self._data[offset : offset + len(buffer)]


@dataclass(frozen=True, slots=True)
class Magic:
    """Bytes at a place by which something is known."""

    what: str
    magic: bytes
    offsets: tuple[int, ...] = (0,)
    """Where they can be, in bytes; negative ones count from the end."""
    kind: Kind = "image"
    check: Callable[[bytes], object] | None = None
    """Is given 512 bytes, from the magic on (less at the end), and says whether it is one."""

    def places(self, source: Source, start: int = 0, size: int | None = None) -> Iterator[int]:
        """
        Yield the bytes, from the start of the source, where a part of it has them: `size` bytes from `start` on.

        Raises what reading the source raises.
        """
        size = source.size - start if size is None else size
        for offset in self.offsets:
            place = offset if offset >= 0 else size + offset
            if place < 0 or place + len(self.magic) > size:
                continue
            found = bytearray(min(_BLOCK, size - place) if self.check else len(self.magic))
            source.read_into(memoryview(found), start + place)
            if found.startswith(self.magic) and (self.check is None or self.check(bytes(found))):
                yield start + place


def _u32(data: bytes, offset: int) -> int:
    """Return a little-endian number."""
    return int.from_bytes(data[offset : offset + 4], "little")


def _is_gzip(data: bytes) -> bool:
    """RFC 1952, section 2.3.1: the method is 8, three flags are reserved, few systems and levels have a number."""
    return len(data) >= 10 and not data[3] & 0xE0 and data[8] in (0, 2, 4) and (data[9] <= 13 or data[9] == 255)


def _is_bzip2(data: bytes) -> bool:
    return data[3:4] in b"123456789" and data[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")


def _is_zip(data: bytes) -> bool:
    """APPNOTE.TXT, section 4.4.3: no version needed to extract is above 6.3; the methods have small numbers."""
    return len(data) >= 30 and data[4] <= 63 and data[9] == 0


def _is_program(data: bytes) -> bool:
    return data[4:5] in (b"\1", b"\2") and data[5:6] in (b"\1", b"\2") and data[6:7] == b"\1"


def _is_descriptor(data: bytes) -> bool:
    """VMware, Virtual Disk Format 5.0, "The Descriptor File"; QEMU too takes one without its first line."""
    text = data.partition(b"\0")[0].lower()
    return text.startswith(b"# disk descriptorfile") or (
        re.search(rb"^[ \t]*version[ \t]*=", text, re.MULTILINE) is not None
        and re.search(rb"^[ \t]*createtype[ \t]*=", text, re.MULTILINE) is not None
    )


IMAGES = (
    Magic("a qcow image", b"QFI\xfb\0\0\0\1"),
    Magic("a qcow2 image", b"QFI\xfb", check=lambda data: data[4:8] != b"\0\0\0\1"),  # QEMU, docs/interop/qcow2.rst
    Magic(
        "a QED image", b"QED\0", check=lambda data: _u32(data, 4).bit_count() == 1
    ),  # QEMU, docs/interop/qed_spec.rst
    Magic("a VMDK image", b"KDMV", check=lambda data: _u32(data, 4) < 16),  # VMware, Virtual Disk Format 5.0
    Magic("a VMDK image", b"COWD", check=lambda data: _u32(data, 4) < 16),
    Magic("a VMDK image", b"\xbe\xba\xfe\xca\0\0\0\0"),  # QEMU, block/vmdk.c, `SESPARSE_CONST_HEADER_MAGIC`
    Magic("a VMDK descriptor", b"#", check=_is_descriptor),
    Magic("a VDI image", b"\x7f\x10\xda\xbe", (64,)),
    Magic("a VHDX image", b"vhdxfile"),
    Magic("a VHD image", b"conectix", (0, -512, -511)),  # a fixed one has its footer only; older ones have 511 bytes
    Magic("a Parallels image", b"WithoutFreeSpace"),  # QEMU, docs/interop/parallels.txt
    Magic("a Parallels image", b"WithouFreSpacExt"),
    Magic("a Bochs image", b"Bochs Virtual HD Image"),
    Magic("a cloop image", b"#!/bin/sh\n#V2.0 Format"),
    Magic("a DMG image", b"koly", (0, -512), check=lambda data: data[4:12] == b"\0\0\0\4\0\0\2\0"),
    Magic("an encrypted DMG image", b"encrcdsa"),
    Magic("an encrypted DMG image", b"cdsaencr", (-8,)),
    Magic("a sparse image of macOS", b"sprs", check=lambda data: data[4:8] == b"\0\0\0\3"),
    Magic("a copy-on-write image of User-Mode Linux", b"OOOM", check=lambda data: data[4:7] == b"\0\0\0"),
    Magic("a sparse image of Android", b"\x3a\xff\x26\xed\1\0"),
    Magic("a Windows image (WIM)", b"MSWIM\0\0\0"),
    Magic("an archive of Proxmox (VMA)", b"VMA\0\0\0\0\1"),
    Magic("an image of Nero", b"NER5", (-12,)),
    Magic("an image of partclone", b"partclone-image"),
    Magic("an image of partimage", b"PaRtImAgE-VoLuMe"),
    Magic("an EnCase image (E01)", b"EVF\t\r\n\xff\0"),
    Magic("an EnCase image (Ex01)", b"EVF2\r\n\x81\0"),
    Magic("an EnCase image (L01)", b"LVF\t\r\n\xff\0"),
    Magic("an EnCase image (Lx01)", b"LEF2\r\n\x81\0"),
    Magic("an AFF image", b"AFF10\r\n\0"),
)
"""Disks, as virtual machines and forensic tools keep them."""

ARCHIVES = (
    Magic("gzip data", b"\x1f\x8b\x08", check=_is_gzip),
    Magic("bzip2 data", b"BZh", check=_is_bzip2),
    Magic("xz data", b"\xfd7zXZ\x00"),
    Magic("zstd data", b"\x28\xb5\x2f\xfd"),  # RFC 8878, section 3.1.1
    Magic("lz4 data", b"\x04\x22\x4d\x18", check=lambda data: data[4] >> 6 == 1),
    Magic("lzip data", b"LZIP\1"),
    Magic("lzop data", b"\x89LZO\0\r\n\x1a\n"),
    Magic("snappy data", b"\xff\6\0\0sNaPpY"),
    Magic("a zip archive", b"PK\3\4", check=_is_zip),
    Magic("a zip archive", b"PK\5\6" + bytes(16)),
    Magic("a 7z archive", b"7z\xbc\xaf\x27\x1c"),
    Magic("a rar archive", b"Rar!\x1a\x07"),
    Magic("a tar archive", b"ustar", (257,), check=lambda data: data[5:8] in (b"\x0000", b"  \0")),
    Magic("a cpio archive", b"070701"),
    Magic("a cpio archive", b"070702"),
    Magic("a cpio archive", b"070707"),
    Magic("an ar archive", b"!<arch>\n"),
    Magic("a cabinet", b"MSCF\0\0\0\0"),
    Magic("a xar archive", b"xar!\0\x1c"),
    Magic("an RPM package", b"\xed\xab\xee\xdb"),
)
"""What has to be unpacked."""

ENCRYPTED_FILES = (
    Magic("a file of 'openssl enc'", b"Salted__"),
    Magic("a file of age", b"age-encryption.org/"),
    Magic("a file of age", b"-----BEGIN AGE "),
    Magic("a file of OpenPGP", b"-----BEGIN PGP "),
    Magic("a file of scrypt", b"scrypt\0"),
    Magic("a file of AES Crypt", b"AES\2\0"),
    Magic("a KeePass database", b"\x03\xd9\xa2\x9a\x67\xfb\x4b\xb5"),
)

OTHER_FILES = (
    Magic("a PDF document", b"%PDF-", kind="content"),
    Magic("a PNG picture", b"\x89PNG\r\n\x1a\n", kind="content"),
    Magic("a JPEG picture", b"\xff\xd8\xff", kind="content", check=lambda data: data[6:10] in (b"JFIF", b"Exif")),
    Magic("an ELF program", b"\x7fELF", kind="content", check=_is_program),
    Magic("an SQLite database", b"SQLite format 3\0", kind="content"),
    Magic("an office document", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", kind="content"),
    Magic("an MP4 film", b"ftyp", (4,), kind="content"),
    Magic("a Matroska film", b"\x1a\x45\xdf\xa3", kind="content"),
    Magic("a PEM file", b"-----BEGIN ", kind="content"),
    Magic("an XML document", b"<?xml ", kind="content"),
)

LUKS1_IN_REENCRYPTION = Magic("a LUKS1 header in reencryption", b"LUKS\xde\xad", kind="content")
"""cryptsetup, src/utils_reencrypt_luks1.c, `NOMAGIC`: nobody can open it until the reencryption is finished."""

LUKS_HEADERS = (
    Magic("a LUKS header", b"LUKS\xba\xbe", kind="content"),
    Magic(
        "the second copy of a LUKS2 header",
        b"SKUL\xba\xbe",
        tuple(1 << power for power in range(14, 23)),  # LUKS2 specification, table 1: 16 KiB to 4 MiB
        kind="content",
    ),
    LUKS1_IN_REENCRYPTION,
)

AT_A_DISTANCE = (
    Magic("ntfs", b"NTFS    ", (3,), kind="content"),
    Magic("BitLocker", b"-FVE-FS-", (3,), kind="content"),
)
"""What libblkid knows only with the help of blocks far behind the start: for where it does not see them."""

FILE_FORMATS = (*IMAGES, *ARCHIVES, *ENCRYPTED_FILES, *OTHER_FILES)


class Ends:
    """A part of a source, whose ends are read once: most magics are there."""

    _SIZE = 8192

    def __init__(self, source: Source, start: int, size: int) -> None:
        """Read the ends. Raises what reading the source raises."""
        self._source = source
        self._end = start + size
        self._pieces = []
        for place in sorted({start, max(start, self._end - self._SIZE)}):
            piece = bytearray(min(self._SIZE, self._end - place))
            source.read_into(memoryview(piece), place)
            self._pieces.append((place, piece))

    @property
    def size(self) -> int:
        """See Source."""
        return self._end

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Source."""
        for place, piece in self._pieces:
            if place <= offset and offset + len(buffer) <= place + len(piece):
                buffer[:] = piece[offset - place : offset - place + len(buffer)]
                return
        self._source.read_into(buffer, offset)


def known_magics(
    source: Source, magics: Iterable[Magic], start: int = 0, size: int | None = None
) -> list[tuple[int, Magic]]:
    """
    Return which of these a part of the source has, and at which bytes: `size` bytes from `start` on, all if left out.

    Raises what reading the source raises.
    """
    size = source.size - start if size is None else size
    if size <= 0:
        return []
    ends = Ends(source, start, size)
    return [(place, magic) for magic in magics for place in magic.places(ends, start, size)]
