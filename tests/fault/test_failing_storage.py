"""Storage that fails beneath a mount: the program that asked hears of it, and the mount goes on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.devices import tmpfs
from support.mounts import Mounted
from support.volumes import MIB

pytestmark = [pytest.mark.root, pytest.mark.needs("fuse", "cryptsetup", "mount")]

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
