"""A volume whose payload becomes longer or shorter while it is mounted."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles, decrypted
from support.devices import loop_device
from support.mounts import Mounted, lukshdrfs
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

pytestmark = [pytest.mark.needs("fuse", "cryptsetup"), pytest.mark.each_data_path]

SECTOR = 4096


def growable(files: LuksFiles, *options: str) -> Mounted:
    """Mount a volume that may be resized."""
    return Mounted(files.payload, "--growable", *options, header=files.header, key_file=files.key_file)


def test_truncate_lengthens_the_payload_by_encrypted_zeros(volume: LuksFiles) -> None:
    """What comes to the end reads as zeros, is written like everything else, and is what cryptsetup decrypts."""
    with growable(volume) as mount:
        os.truncate(mount.image, 6 * MIB)
        assert mount.image.stat().st_size == volume.payload.stat().st_size == 6 * MIB
        with mount.image.open("r+b", buffering=0) as image:
            assert os.pread(image.fileno(), 2 * MIB, 4 * MIB) == bytes(2 * MIB)
            os.pwrite(image.fileno(), b"at the new end", 6 * MIB - 14)
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                os.pwrite(image.fileno(), b"past it", 6 * MIB)
    assert bytes(SECTOR) not in volume.payload.read_bytes()[4 * MIB :], "a hole would show what is unused"
    assert decrypted(volume)[4 * MIB :] == bytes(2 * MIB - 14) + b"at the new end"


def test_truncate_shortens_the_payload(volume: LuksFiles) -> None:
    """The end goes, the rest stays, and the volume opens again with its new size."""
    with growable(volume) as mount:
        with mount.image.open("r+b", buffering=0) as image:
            os.pwrite(image.fileno(), b"stays", MIB - 5)
        os.truncate(mount.image, MIB)
        assert mount.image.read_bytes()[-5:] == b"stays"
        assert volume.payload.stat().st_size == MIB
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        assert mount.image.stat().st_size == MIB
        assert mount.image.read_bytes()[-5:] == b"stays"


@pytest.mark.parametrize("size", [0, SECTOR - 1, SECTOR + 512, 4 * MIB + 1])
def test_sizes_that_are_no_whole_sectors(size: int, volume: LuksFiles) -> None:
    """The image has whole sectors, at least one: everything else is EINVAL, and changes nothing."""
    with growable(volume) as mount:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.truncate(mount.image, size)
        assert mount.image.stat().st_size == volume.payload.stat().st_size == 4 * MIB


def test_a_truncate_that_would_take_long_is_refused(volume: LuksFiles) -> None:
    """The kernel lets nobody write while it waits for a truncate: by much, the image grows by `resize` alone."""
    with growable(volume) as mount:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            os.truncate(mount.image, 70 * MIB)
        assert mount.image.stat().st_size == volume.payload.stat().st_size == 4 * MIB


def test_no_growing_without_being_asked_for(mounted: Mounted) -> None:
    """Without the option, another size is EPERM."""
    for size in (2 * MIB, 8 * MIB):
        with pytest.raises(PermissionError):
            os.truncate(mounted.image, size)


def test_no_growing_of_a_window(volume: LuksFiles) -> None:
    """A volume whose size was given by its user does not grow over what lies behind it."""
    with growable(volume, "--size", "1M") as mount, pytest.raises(PermissionError):
        os.truncate(mount.image, 2 * MIB)
    assert volume.payload.stat().st_size == 4 * MIB


@pytest.mark.needs("loop")
def test_no_growing_of_a_device(volume: LuksFiles) -> None:
    """A device's size is not ours to change."""
    with loop_device(volume.payload) as device:
        mountpoint = volume.payload.parent / "mnt"
        files = LuksFiles(Path(device), volume.header, volume.key_file)
        with (
            Mounted(
                files.payload, "--growable", header=files.header, key_file=files.key_file, mountpoint=_made(mountpoint)
            ) as mount,
            pytest.raises(PermissionError),
        ):
            os.truncate(mount.image, 8 * MIB)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_full_storage_grows_nothing(make_volume: MakeVolume, tmp_path: Path) -> None:
    """If the payload's file system has no room for it, the errno is ENOSPC and everything is as it was."""
    if os.geteuid() != 0:
        pytest.skip("a small file system of its own needs root")
    files = make_volume()
    folder = _made(tmp_path / "small")
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", "size=8M", "none", folder], check=True)
    try:
        payload = folder / "payload.img"
        payload.write_bytes(files.payload.read_bytes())
        with Mounted(
            payload, "--growable", header=files.header, key_file=files.key_file, mountpoint=_made(tmp_path / "mnt")
        ) as mount:
            before = mount.image.read_bytes()
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                os.truncate(mount.image, 64 * MIB)
            assert payload.stat().st_size == mount.image.stat().st_size == 4 * MIB
            assert mount.image.read_bytes() == before
            os.truncate(mount.image, 6 * MIB)
            assert mount.image.read_bytes()[4 * MIB :] == bytes(2 * MIB)
            done = lukshdrfs("resize", mount.mountpoint, "1G")
            assert done.returncode == 4
            assert "1067450368 bytes more: the payload's file system has" in done.stderr
            assert payload.stat().st_size == mount.image.stat().st_size == 6 * MIB
    finally:
        subprocess.run([program("umount"), folder], check=True)


def test_hangup_notices_a_payload_that_grew(volume: LuksFiles) -> None:
    """After SIGHUP, the image is as long as the payload that somebody else made longer or shorter."""
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        for size in (7 * MIB, 3 * MIB):
            os.truncate(volume.payload, size + 512)  # what is less than a sector is left out
            os.kill(mount.pid, signal.SIGHUP)
            wait_until(lambda: mount.image.stat().st_size == size, "the image has the new size")  # noqa: B023
            assert len(mount.image.read_bytes()) == size
        with mount.image.open("r+b", buffering=0) as image:
            assert os.pwrite(image.fileno(), bytes(SECTOR), 3 * MIB - SECTOR) == SECTOR


def test_growing_while_others_write(volume: LuksFiles) -> None:
    """Writers at the old end are not disturbed when the image grows and shrinks under them."""
    with growable(volume) as mount:
        writer = subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={mount.image}", "bs=64k", "count=512", "conv=notrunc", "oflag=dsync"],
            stderr=subprocess.DEVNULL,
        )
        for size in range(33, 40):
            os.truncate(mount.image, size * MIB)
        assert writer.wait(60) in (0, 1)  # it may have met the old end
        assert mount.image.stat().st_size == 39 * MIB


def test_fstab_spells_it_growable(volume: LuksFiles) -> None:
    """`-o growable` is the same."""
    mountpoint = _made(volume.payload.parent / "mnt")
    done = lukshdrfs(volume.payload, mountpoint, "-o", f"growable,header={volume.header},keyfile={volume.key_file}")
    assert done.returncode == 0, done.stderr
    try:
        os.truncate(mountpoint / "image", 5 * MIB)
        assert volume.payload.stat().st_size == 5 * MIB
    finally:
        assert lukshdrfs("unmount", mountpoint).returncode == 0
