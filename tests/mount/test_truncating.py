"""Programs that truncate a file before they write it: they copy, or they fail before anything is changed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import Mounted, foreground, lukshdrfs
from support.tools import SYSTEM_PATH
from support.volumes import MIB
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup")

OLD = b"what was there before " * 64

TRUNCATING = {
    "cp": "cp new IMAGE",
    "cp -a": "cp -a new IMAGE",
    "cp of all zeros": "cp --sparse=never new IMAGE",
    "cp of fewer blocks": "cp --sparse=always new IMAGE",
    "shell": "cat new > IMAGE",
    "tee": "tee IMAGE < new > written",
    "dd": "dd if=new of=IMAGE bs=64k",
    "python": 'python3 -c \'import sys; open(sys.argv[1], "wb").write(open("new", "rb").read())\' IMAGE',
    "tar": "tar -cf new.tar new && tar -xf new.tar --overwrite --transform s/new/image/ -C FOLDER",
    "install": "install new IMAGE",
    "truncate": "truncate --size 0 IMAGE",
    "truncate to less": "truncate --size 4096 IMAGE",
    "truncate to more": "truncate --size 5M IMAGE",
    "qemu-img convert": "qemu-img convert -f raw -O raw new IMAGE",
    "qemu-img create": "qemu-img create -f raw IMAGE 4M",
    "nbdcopy": "nbdcopy new IMAGE",
}
COPYING = {
    "dd": "dd if=new of=IMAGE bs=64k conv=notrunc,fsync",
    "shell": "cat new 1<> IMAGE",
    "qemu-img convert": "qemu-img convert -n -f raw -O raw new IMAGE",
    "qemu-img convert past the cache": "qemu-img convert -n -t none -f raw -O raw new IMAGE",
    "rsync": "rsync --inplace --ignore-times new IMAGE",
    "ddrescue": "ddrescue --force new IMAGE",
    "nbdcopy": "nbdcopy new - | dd of=IMAGE bs=64k iflag=fullblock conv=notrunc,fsync",
}


def is_there(command: str) -> bool:
    """Whether the machine has the program that a command begins with."""
    return shutil.which(command.split(maxsplit=1)[0], path=SYSTEM_PATH) is not None


def run(command: str, image: Path, folder: Path) -> int:
    """Type a command in a folder; return its exit status."""
    line = command.replace("IMAGE", str(image)).replace("FOLDER", str(image.parent))
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, timeout=60, check=False)
    return done.returncode


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Return a sparse file of the image's size: its data are in the middle, all else is holes."""
    path = tmp_path / "new"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 4 * MIB)
        os.pwrite(stream.fileno(), b"new" * 1000, 2 * MIB + 5)
    return path


@pytest.fixture
def filled(mounted: Mounted) -> Mounted:
    """Have old data all over the image."""
    fill(mounted.image)
    return mounted


def fill(image: Path) -> None:
    """Write old data all over an image."""
    with image.open("r+b", buffering=0) as stream:
        os.pwrite(stream.fileno(), (OLD * (4 * MIB // len(OLD) + 1))[: 4 * MIB], 0)


@pytest.mark.needs("qemu-img")
def test_what_truncates_fails_before_anything_is_changed(filled: Mounted, new: Path) -> None:
    """Programs that truncate the image, by opening it or afterwards, fail, and all is as it was."""
    before = filled.image.read_bytes()
    for name, command in TRUNCATING.items():
        if is_there(command):
            assert run(command, filled.image, new.parent) != 0, name
            assert filled.image.read_bytes() == before, name


@pytest.mark.needs("qemu-img")
def test_the_ways_that_are_named_instead_copy_everything(filled: Mounted, new: Path) -> None:
    """They copy a sparse file with its zeros, to the last byte, even if both files are as old and as large."""
    for name, command in COPYING.items():
        if is_there(command):
            fill(filled.image)
            os.utime(new, (filled.image.stat().st_mtime, filled.image.stat().st_mtime))
            assert run(command, filled.image, new.parent) == 0, name
            assert filled.image.read_bytes() == new.read_bytes(), name


def test_o_trunc_is_eperm(filled: Mounted) -> None:
    """O_TRUNC is EPERM with every other flag; so is ftruncate through a handle that is open already."""
    for flags in (0, os.O_CREAT, os.O_APPEND, os.O_DIRECT, os.O_SYNC):
        for access in (os.O_WRONLY, os.O_RDWR):
            with pytest.raises(PermissionError):
                os.open(filled.image, access | flags | os.O_TRUNC)
        descriptor = os.open(filled.image, os.O_RDWR | flags)
        try:
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
    with pytest.raises(FileExistsError):
        os.open(filled.image, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert filled.image.stat().st_size == 4 * MIB
    assert filled.image.read_bytes()[: len(OLD)] == OLD


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_so_it_is_on_a_file(data_path: str, volume: LuksFiles, new: Path) -> None:
    """A mountpoint that is a file is no other image, over either data path."""
    mountpoint = new.parent / "file"
    mountpoint.touch()
    with Mounted(
        volume.payload, "--data-path", data_path, header=volume.header, key_file=volume.key_file, mountpoint=mountpoint
    ) as mount:
        fill(mount.image)
        before = mount.image.read_bytes()
        assert run("cp new IMAGE", mount.image, new.parent) != 0
        assert mount.image.read_bytes() == before


def test_growable_images_are_not_emptied_either(volume: LuksFiles, new: Path) -> None:
    """To be resized does not mean to be emptied: a size of 0 is not to be had, and O_TRUNC would be that."""
    with Mounted(volume.payload, "--growable", header=volume.header, key_file=volume.key_file) as mount:
        fill(mount.image)
        before = mount.image.read_bytes()
        for command in ("cp new IMAGE", "truncate --size 0 IMAGE", "qemu-img convert -f raw -O raw new IMAGE"):
            assert run(command, mount.image, new.parent) != 0
        assert mount.image.read_bytes() == before


def test_who_shortens_and_lengthens_reads_zeros(volume: LuksFiles) -> None:
    """What a growable image lost by one truncation is not there again by the next one, for any reader."""
    with Mounted(volume.payload, "--growable", header=volume.header, key_file=volume.key_file) as mount:
        fill(mount.image)
        with mount.image.open("rb", buffering=0) as reader:
            reader.read()  # the kernel has it in its cache
            os.truncate(mount.image, 4096)
            os.truncate(mount.image, 4 * MIB)
            assert os.pread(reader.fileno(), 4 * MIB, 0) == (OLD * 4)[:4096] + bytes(4 * MIB - 4096)


@pytest.mark.parametrize(
    ("data_path", "spelling"), [("native", ["--truncate", "ignore"]), ("python", ["-o", "truncate=ignore"])]
)
def test_ignored_as_on_a_block_device(data_path: str, spelling: list[str], volume: LuksFiles, new: Path) -> None:
    """On request, O_TRUNC changes nothing: what is written is there, and what is not stays; sizes stay refused."""
    with Mounted(
        volume.payload, "--data-path", data_path, *spelling, header=volume.header, key_file=volume.key_file
    ) as mount:
        fill(mount.image)
        before = mount.image.read_bytes()
        os.close(os.open(mount.image, os.O_WRONLY | os.O_TRUNC))
        assert mount.image.read_bytes() == before
        assert run("truncate --size 0 IMAGE", mount.image, new.parent) != 0
        assert run("cp --sparse=never new IMAGE", mount.image, new.parent) == 0
        assert mount.image.read_bytes() == new.read_bytes()


def test_read_only_is_erofs(volume: LuksFiles) -> None:
    """On a read-only mount it is what every change is."""
    with (
        Mounted(volume.payload, "-r", header=volume.header, key_file=volume.key_file) as mount,
        pytest.raises(OSError, match=os.strerror(errno.EROFS)),
    ):
        os.open(mount.image, os.O_WRONLY | os.O_TRUNC)


def test_the_log_names_the_way_out(volume: LuksFiles, tmp_path: Path) -> None:
    """The program that fails has room for an errno only; the daemon's log says what to do, in one line each."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    opening = ("--header", volume.header, "--key-file", volume.key_file)
    with foreground("mount", "-f", *opening, volume.payload, mountpoint, mountpoint=mountpoint) as process:
        wait_until((mountpoint / "image").exists, "it is mounted")
        with pytest.raises(PermissionError):
            os.open(mountpoint / "image", os.O_WRONLY | os.O_TRUNC)
        with pytest.raises(PermissionError):
            os.truncate(mountpoint / "image", 0)
        with pytest.raises(PermissionError):
            os.truncate(mountpoint / "image", 8 * MIB)
        assert lukshdrfs("unmount", mountpoint).returncode == 0
        assert process.stderr is not None
        opened, emptied, lengthened = process.stderr.read().decode().splitlines()
    for line in (opened, emptied):
        assert all(way in line for way in ("dd conv=notrunc", "qemu-img convert -n", "rsync --inplace --ignore-times"))
    assert "--truncate ignore" in opened
    assert "lukshdrfs resize" in lengthened


def test_another_word_is_refused(volume: LuksFiles, tmp_path: Path) -> None:
    """A value that is not known is named, with those that are."""
    done = lukshdrfs("mount", "--truncate", "zero", "--header", volume.header, volume.payload, tmp_path)
    assert done.returncode == 1
    assert "--truncate zero: expected refuse, ignore" in done.stderr
