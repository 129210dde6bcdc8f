"""Payloads that are something else: what other programs make, at any place of a file."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from support.tools import program
from support.volumes import MIB

Make = Callable[[Path], object]


def random_file(path: Path, size: int = 4 * MIB) -> None:
    path.write_bytes(os.urandom(size))


def make_ext4(path: Path, offset: int = 0) -> None:
    """Make one over what is there, to the file's end."""
    size = (path.stat().st_size - offset) // 1024
    options = ["-E", f"nodiscard,offset={offset}"]
    subprocess.run([program("mkfs.ext4"), "-q", "-F", *options, path, f"{size}k"], check=True)


def make_swap(path: Path) -> None:
    subprocess.run([program("mkswap"), path], check=True, capture_output=True)


def make_gpt(path: Path) -> None:
    """Write a table with one partition from the first MiB on, and its copy at the end."""
    table = b"label: gpt\nstart=2048, size=2048\n"
    subprocess.run([program("sfdisk"), "--quiet", path], input=table, check=True, capture_output=True)


def zero(path: Path, offset: int, size: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(size))


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Write over what is there; a negative offset counts from the end."""
    with path.open("r+b") as stream:
        stream.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        stream.write(data)


def image_of(image_format: str, *options: str) -> Make:
    """Return what makes an image of 8 MiB with QEMU."""

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        words = [word for option in options for word in ("-o", option)]
        subprocess.run([program("qemu-img"), "create", "-q", "-f", image_format, *words, path, "8M"], check=True)

    return make


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name", os.urandom(MIB))


def _tar(path: Path) -> None:
    member = path.with_name("member")
    random_file(member, MIB)
    with tarfile.open(path, "w") as archive:
        archive.add(member, "name")
    member.unlink()


IMAGES: dict[str, tuple[Make, str]] = {
    "qcow": (image_of("qcow"), "qcow image"),
    "qcow2": (image_of("qcow2"), "qcow2"),
    "qcow2, version 2": (image_of("qcow2", "compat=0.10"), "qcow2"),
    "vmdk": (image_of("vmdk"), "VMDK"),
    "vmdk, streamed": (image_of("vmdk", "subformat=streamOptimized"), "VMDK"),
    "vmdk, descriptor": (image_of("vmdk", "subformat=monolithicFlat"), "VMDK"),
    "vdi": (image_of("vdi"), "VDI"),
    "vhd": (image_of("vpc"), "VHD"),
    "vhd, footer only": (image_of("vpc", "subformat=fixed"), "VHD"),
    "vhdx": (image_of("vhdx"), "VHDX"),
    "qed": (image_of("qed"), "QED"),
    "parallels": (image_of("parallels"), "Parallels"),
}
"""What makes an image, and a word of what it is called."""

ARCHIVES: dict[str, tuple[Make, str]] = {
    "gzip": (lambda path: path.write_bytes(gzip.compress(os.urandom(MIB))), "gzip"),
    "xz": (lambda path: path.write_bytes(lzma.compress(os.urandom(MIB))), "xz"),
    "zip": (_zip, "zip"),
    "tar": (_tar, "tar"),
}
