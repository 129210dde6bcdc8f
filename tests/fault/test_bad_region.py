"""A disk one part of which takes no writes: each write that is to be on the storage hears of its own outcome."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.cryptsetup import XTS_4096
from support.devices import loop_device
from support.failing_disk import failing_disk
from support.mounts import LUKSHDRFS, Mounted, fusermount
from support.nbd import address, nbdkit, over_nbd
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

import lukshdrfs as package

pytestmark = [pytest.mark.root, pytest.mark.needs("fuse", "cryptsetup", "loop")]

SIZE, BAD = 6 * MIB, range(4 * MIB, 5 * MIB)
SECONDS = 0.5
PLACES = 60
"""Blocks that a writer writes to, in turn."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """Return a disk whose writes fail between the bytes of `BAD`, when they leave the page cache."""
    with failing_disk(tmp_path / "disk", SIZE, BAD) as file, loop_device(file, "--sector-size", "4096") as device:
        yield device


@dataclass
class Writer:
    """Writes blocks one after the other for a while, and counts what becomes of them."""

    descriptor: int
    start: int
    written: int = 0
    failed: int = 0
    content: dict[int, bytes] = field(default_factory=dict)

    def run(self) -> None:
        page, end, number = mmap.mmap(-1, 4096), time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            at = self.start + number % PLACES * 4096
            number += 1
            page[:] = f"{self.start} {number} ".encode().ljust(4096, b"x")
            try:
                os.pwritev(self.descriptor, [page], at)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self.failed += 1
            else:
                self.written += 1
                self.content[at] = bytes(page)


def run(writers: Sequence[Writer]) -> None:
    """Let them write at the same time."""
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("data_path", ["native", "python"])
@pytest.mark.parametrize(
    ("cache", "flags", "shared"),
    [("writethrough", os.O_DIRECT, False), ("writeback", os.O_DSYNC, False), ("none", os.O_DSYNC, True)],
    ids=["writethrough", "O_DSYNC handles", "one O_DSYNC handle"],
)
def test_each_write_has_its_own_outcome(
    make_volume: MakeVolume, tmp_path: Path, disk: str, data_path: str, cache: str, flags: int, shared: bool
) -> None:
    """
    Writes to the bad part fail, all of them; writes elsewhere at the same time succeed, and are on the disk.

    Who has the image open hears of the lost data once, by his next fsync.
    """
    files = make_volume(XTS_4096, SIZE)
    options = ("--cache", cache, "--data-path", data_path)
    with Mounted(
        Path(disk), *options, header=files.header, key_file=files.key_file, mountpoint=new_folder(tmp_path)
    ) as mount:
        idle = os.open(mount.image, os.O_RDWR)
        handles = [os.open(mount.image, os.O_RDWR | flags) for _ in range(4)]
        bad, *good = writers = [
            Writer(handles[0 if shared else number], start)
            for number, start in enumerate((BAD.start + 4096, MIB, 2 * MIB, 3 * MIB))
        ]
        run(writers)
        assert (bad.written, bad.failed > 0) == (0, True)
        assert [(writer.written > 0, writer.failed) for writer in good] == [(True, 0)] * len(good)
        for handle in (idle, *handles):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.fsync(handle)
        for handle in (idle, *handles):
            os.fsync(handle)
            os.close(handle)
    with package.open_volume(
        tmp_path / "disk" / "disk", header=files.header, passphrase=files.secret, read_only=True
    ) as volume:
        for writer in good:
            assert {at: volume.pread(4096, at) for at in writer.content} == writer.content


def new_folder(folder: Path) -> Path:
    """Return a new folder."""
    place = folder / "mnt"
    place.mkdir()
    return place


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_a_lost_write_that_nobody_asked_about_ends_the_mount_with_an_error(
    make_volume: MakeVolume, tmp_path: Path, disk: str, data_path: str
) -> None:
    """The last flush says it, where no fsync has."""
    files, place = make_volume(XTS_4096, SIZE), new_folder(tmp_path)
    with subprocess.Popen(
        [LUKSHDRFS, "mount", "--foreground", "--cache", "writethrough", "--data-path", data_path, "--header",
         files.header, "--key-file", files.key_file, disk, place],
        stderr=subprocess.PIPE, text=True,
    ) as daemon:  # fmt: skip
        wait_until((place / "image").exists, "it is mounted")
        descriptor = os.open(place / "image", os.O_RDWR)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pwrite(descriptor, b"x" * 4096, BAD.start)
        os.close(descriptor)
        fusermount(place)
        _, said = daemon.communicate(timeout=20)
        assert daemon.returncode != 0
        assert "flushing" in said


@pytest.mark.needs("nbdkit")
@pytest.mark.parametrize("data_path", ["native", "python"])
def test_over_nbd_too(make_volume: MakeVolume, tmp_path: Path, data_path: str) -> None:
    """A server that takes all writes, and tells by the next flush, once, that one of them could not be put anywhere."""
    files, socket, lost = make_volume(XTS_4096, SIZE), tmp_path / "socket", tmp_path / "lost"
    plugin = (
        "eval", f"get_size=echo {SIZE}", "can_write=exit 0", "can_flush=exit 0", "can_fua=echo none",
        f"pread=tail -c +$(($4 + 1)) {files.payload} | head -c $3",
        (f"pwrite=if [ $4 -ge {BAD.start} ] && [ $4 -lt {BAD.stop} ]; then cat > /dev/null; touch {lost}; exit 0; fi; "
        f"dd of={files.payload} oflag=seek_bytes seek=$4 conv=notrunc iflag=fullblock status=none"),
        f"flush=if rm {lost} 2> /dev/null; then echo EIO lost >&2; exit 1; fi",
    )  # fmt: skip
    options = ("--cache", "writethrough", "--data-path", data_path)
    with nbdkit(socket, *plugin) as _, over_nbd(files, address(socket), *options) as mount:
        handles = [os.open(mount.image, os.O_RDWR) for _ in range(3)]
        bad, *good = writers = [
            Writer(handle, start) for handle, start in zip(handles, (BAD.start + 4096, MIB, 2 * MIB), strict=True)
        ]
        run(writers)
        assert (bad.written, bad.failed > 0) == (0, True)
        assert [(writer.written > 0, writer.failed) for writer in good] == [(True, 0)] * len(good)
        for handle in handles:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.fsync(handle)
        for handle in handles:
            os.fsync(handle)
            os.close(handle)
