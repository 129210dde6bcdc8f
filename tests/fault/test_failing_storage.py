"""Storage that fails beneath a mount: the program that asked hears of it, and the mount goes on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.devices import loop_device, tmpfs
from support.mounts import Mounted
from support.nbd import address, nbdkit, over_nbd
from support.processes import alive
from support.volumes import MIB

pytestmark = [pytest.mark.root, pytest.mark.needs("fuse", "cryptsetup", "mount"), pytest.mark.each_data_path]

ROOM = 2 * MIB
"""What the storage holds; the volume believes that it has twice as much."""


@pytest.fixture
def small_storage(tmp_path: Path) -> Iterator[Path]:
    """Return a file system that is full after `ROOM` bytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    with tmpfs(folder, ROOM):
        yield folder


@pytest.fixture
def on_small_storage(volume: LuksFiles, small_storage: Path) -> LuksFiles:
    """Return a volume with a sparse payload that is larger than its storage."""
    payload = small_storage / "payload.img"
    payload.touch()
    os.truncate(payload, volume.payload.stat().st_size)
    return LuksFiles(payload, volume.header, volume.key_file)


@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
def test_full_storage_is_no_lost_data(cache: str, on_small_storage: LuksFiles, tmp_path: Path) -> None:
    """When the storage is full a writer is told, at the latest by fsync; what was synced before is there."""
    files = on_small_storage
    first = os.urandom(MIB)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()

    with Mounted(
        files.payload, "--cache", cache, header=files.header, key_file=files.key_file, mountpoint=mountpoint
    ) as mount:
        descriptor = os.open(mount.image, os.O_RDWR)
        assert os.pwrite(descriptor, first, 0) == MIB
        os.fsync(descriptor)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            position = MIB
            while position < 4 * MIB:
                position += os.pwrite(descriptor, os.urandom(128 << 10), position)
            os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, MIB, 0) == first
        assert os.pwrite(descriptor, b"on", 10) == 2
        os.fsync(descriptor)
        os.close(descriptor)
    copy = LuksFiles(tmp_path / "copy.img", files.header, files.key_file)
    shutil.copyfile(files.payload, copy.payload)
    with Mounted(
        copy.payload, "--read-only", header=copy.header, key_file=copy.key_file, mountpoint=mountpoint
    ) as mount:
        assert mount.image.read_bytes()[:MIB] == first[:10] + b"on" + first[12:]


def test_device_that_becomes_shorter(volume: LuksFiles, tmp_path: Path) -> None:
    """A device whose storage has lost its end: what is there can be read and written, the rest gives EIO."""
    half = volume.payload.stat().st_size // 2
    first = os.urandom(MIB)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with loop_device(volume.payload) as device:
        mount = Mounted(Path(device), header=volume.header, key_file=volume.key_file, mountpoint=mountpoint)
        with mount:
            image, below = os.open(mount.image, os.O_RDWR), os.open(device, os.O_RDONLY)
            os.pwrite(image, first, 0)
            os.fsync(image)
            os.truncate(volume.payload, half)
            for descriptor in (below, image):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.pread(image, 4096, half + MIB)
            assert os.pread(image, MIB, 0) == first
            os.pwrite(image, b"on", 10)
            os.fsync(image)
            assert os.pread(image, 12, 0) == first[:10] + b"on"
            os.close(image)
            os.close(below)
            assert alive(mount.pid)


@pytest.mark.needs("nbdkit")
def test_one_bad_sector(volume: LuksFiles, tmp_path: Path) -> None:
    """A sector that cannot be read is an error to who asks for it; its neighbours can be read and written."""
    bad, socket = MIB + 8192, tmp_path / "socket"
    touches = f"[ $4 -lt {bad + 512} ] && [ $(($4 + $3)) -gt {bad} ]"
    plugin = (
        "eval", f"get_size=echo {volume.payload.stat().st_size}", "can_write=exit 0", "can_flush=exit 0",
        "flush=exit 0", (f"pread=if {touches}; then echo EIO bad >&2; exit 1; fi; "
        f"tail -c +$(($4 + 1)) {volume.payload} | head -c $3"),
        (f"pwrite=if {touches}; then echo EIO bad >&2; exit 1; fi; "
        f"dd of={volume.payload} oflag=seek_bytes seek=$4 conv=notrunc iflag=fullblock status=none"),
    )  # fmt: skip
    with nbdkit(socket, *plugin), over_nbd(volume, address(socket)) as mount:
        image = os.open(mount.image, os.O_RDWR)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(image, 4096, bad)
        os.posix_fadvise(image, 0, 0, os.POSIX_FADV_DONTNEED)
        assert len(os.pread(image, 16 * 4096, bad - 4096)) == 4096
        for neighbour in (bad - 4096, bad + 4096):
            os.pwrite(image, b"beside" * 600, neighbour)
            os.fsync(image)
            os.posix_fadvise(image, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(image, 3600, neighbour) == b"beside" * 600
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pwrite(image, bytes(4096), bad)
            os.fsync(image)
        os.close(image)
        assert alive(mount.pid)
