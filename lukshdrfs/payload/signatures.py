"""
What is recognisable on a file or device: libblkid's opinion, by its program.

The list of our own is of what libblkid does not look for: images of virtual machines, archives, encrypted files. Random
bytes have one of them less than once in ten million times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lukshdrfs.environment import for_children
from lukshdrfs.errors import DeviceError
from lukshdrfs.payload.base import Payload

FOUND_NOTHING = 2  # blkid(8), "EXIT STATUS"

_END = 1 << 20
"""Bytes at both ends that have all the superblocks and partition tables that libblkid looks for, but rare ones."""


def known_signature(name: str, *, ignore: str = "", pass_descriptor: int | None = None) -> str:
    """
    Return what is on a file or device (`ext4`, `gpt`, `LVM2_member`, …), empty if nothing is recognised.

    `ignore` is a superblock type that does not count; `pass_descriptor` is open in blkid, too.
    Raises DeviceError if blkid is not installed.
    """
    # ordinary users of Debian have no sbin in their PATH
    blkid = shutil.which("blkid", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if blkid is None:
        raise DeviceError("blkid is not installed, by which existing data is recognised; install util-linux")
    command = [blkid, "--probe", "--output", "export"]
    if ignore:
        command += ["--match-types", f"no{ignore}"]
    passed = () if pass_descriptor is None else (pass_descriptor,)
    probe = subprocess.run(
        [*command, "--", name], capture_output=True, text=True, check=False, pass_fds=passed, env=for_children()
    )
    if probe.returncode == FOUND_NOTHING:
        return ""
    fields = dict(line.split("=", 1) for line in probe.stdout.splitlines() if "=" in line)
    return fields.get("TYPE") or fields.get("PTTYPE") or "data of more than one kind"


def known_signature_of(size: int, read_into: Callable[[memoryview, int], object]) -> str:
    """
    Return what is on something without a path: its size in bytes, and a function that fills a buffer from an offset on.

    libblkid looks at a copy of both ends, in memory that is gone afterwards.
    """
    copy = os.memfd_create("ends", os.MFD_CLOEXEC)
    try:
        os.truncate(copy, size)
        for offset in {0, max(0, size - _END)}:
            piece = bytearray(min(_END, size))
            read_into(memoryview(piece), offset)
            os.pwrite(copy, piece, offset)
        return known_signature(f"/proc/self/fd/{copy}", pass_descriptor=copy)
    finally:
        os.close(copy)


@dataclass(frozen=True, slots=True)
class Magic:
    """Bytes at a place by which something is known."""

    what: str
    magic: bytes
    offsets: tuple[int, ...] = (0,)
    """Where they can be, in bytes; negative ones count from the end."""

    def places(self, payload: Payload) -> Iterator[int]:
        """Yield the offsets, in bytes from the start, where the payload has them. Raises PayloadError."""
        for offset in self.offsets:
            start = offset if offset >= 0 else payload.size + offset
            if start < 0 or start + len(self.magic) > payload.size:
                continue
            found = bytearray(len(self.magic))
            payload.read_into(memoryview(found), start)
            if found == self.magic:
                yield start


FILE_FORMATS = (
    Magic("a qcow2 image", b"QFI\xfb"),  # QEMU, docs/interop/qcow2.txt
    Magic("a VMDK image", b"KDMV"),
    Magic("a VDI image", b"\x7f\x10\xda\xbe", (64,)),
    Magic("a VHDX image", b"vhdxfile"),
    Magic("a VHD image", b"conectix", (0, -512)),
    Magic("gzip data", b"\x1f\x8b\x08"),  # RFC 1952, section 2.3
    Magic("xz data", b"\xfd7zXZ\x00"),
    Magic("zstd data", b"\x28\xb5\x2f\xfd"),  # RFC 8878, section 3.1.1
    Magic("a zip archive", b"PK\x03\x04"),
    Magic("a 7z archive", b"7z\xbc\xaf\x27\x1c"),
    Magic("a file of 'openssl enc'", b"Salted__"),
    Magic("a file of age", b"age-encryption.org/"),
)
"""What libblkid does not look for; where no source is named, file(1) knows them by the same bytes."""


def known_magics(payload: Payload, magics: Iterable[Magic]) -> list[tuple[int, Magic]]:
    """Return which of these the payload has, and where (bytes). Raises PayloadError if it cannot be read."""
    return [(place, magic) for magic in magics for place in magic.places(payload)]
