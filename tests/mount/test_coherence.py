"""Two ways to the image, past the kernel's page cache and through it: both show what was written, at once."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, XTS_4096
from support.devices import loop_device
from support.mounts import Mounted, fusermount
from support.processes import alive, kill
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "gcc")

SOURCE = Path(__file__).parents[1] / "soak" / "stale_pages.c"
SECONDS = 1
"""A page that stays behind was seen after some 20 writes, a tenth of a second."""
SIZE = 8 * MIB
ZERO_RANGE = 16  # linux/falloc.h
CACHES = ["writeback", "writethrough", "none"]


@pytest.fixture(scope="module")
def stale_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program that looks for old data."""
    target = tmp_path_factory.mktemp("stale") / "stale_pages"
    subprocess.run(
        [program("gcc"), "-O2", "-Wall", "-Wextra", "-Werror", "-o", target, SOURCE, "-lpthread"], check=True
    )
    return target


def look_for_old_data(stale_pages: Path, target: str | Path, image: Path, how: str) -> None:
    """Write to `target` directly, read the image through the cache."""
    done = subprocess.run(
        [stale_pages, target, image, str(SECONDS), how], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("how", ["aio", "uring"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("data_path", ["native", "python"])
def test_whoever_reads_after_a_direct_write_sees_it(
    data_path: str, cache: str, how: str, make_volume: MakeVolume, stale_pages: Path
) -> None:
    """Through read(2) and mmap(2), while others bring pages back all the time."""
    files = make_volume(XTS_4096, SIZE)
    options = ("--data-path", data_path, "--cache", cache)
    with Mounted(files.payload, *options, header=files.header, key_file=files.key_file) as mount:
        look_for_old_data(stale_pages, mount.image, mount.image, how)


@pytest.mark.root
@pytest.mark.needs("losetup")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("data_path", ["native", "python"])
def test_whoever_reads_after_a_loop_device_has_written_sees_it(
    data_path: str, cache: str, make_volume: MakeVolume, stale_pages: Path
) -> None:
    """A loop device with direct I/O goes past the cache, and the image is read through it."""
    files = make_volume(XTS_512, SIZE)
    options = ("--data-path", data_path, "--cache", cache)
    with (
        Mounted(files.payload, *options, header=files.header, key_file=files.key_file) as mount,
        loop_device(mount.image, "--direct-io=on") as device,
    ):
        look_for_old_data(stale_pages, device, mount.image, "aio")


@pytest.mark.needs("qemu-nbd")
def test_small_requests_over_nbd_are_in_step_too(make_volume: MakeVolume, tmp_path: Path) -> None:
    """There, a write that no thread waits for is answered by the thread that hears from the server."""
    from support.nbd import address, over_nbd, qemu_nbd  # noqa: PLC0415 - only here

    files, socket = make_volume(XTS_512, SIZE), tmp_path / "socket"
    with qemu_nbd(files.payload, socket), over_nbd(files, address(socket, "disk")) as mount:
        cached, direct = os.open(mount.image, os.O_RDONLY), os.open(mount.image, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, 4096) as page, mmap.mmap(cached, SIZE, access=mmap.ACCESS_READ) as mapped:
            for number in range(1, 200):
                page[:] = bytes([number]) * 4096
                os.pwritev(direct, [page], 8192)
                assert os.pread(cached, 4096, 8192) == page[:]
                assert mapped[8192:12288] == page[:]
        os.close(cached)
        os.close(direct)


@contextlib.contextmanager
def readers(image: Path, count: int) -> Iterator[list[int]]:
    """Run processes that read at random through the cache, and drop there what they have read."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                generator = random.Random(number)
                descriptor = os.open(image, os.O_RDONLY)
                while True:
                    at = generator.randrange(SIZE // 4096) * 4096
                    os.posix_fadvise(descriptor, at, 4096, os.POSIX_FADV_DONTNEED)
                    os.pread(descriptor, 4096, at)
            os._exit(0)
        children.append(child)
    try:
        yield children
    finally:
        for child in children:
            kill(child)
            os.waitpid(child, 0)


def zero_all(image: Path) -> int:
    """Have a process zero the image; return its number. It ends early when it gets SIGUSR1."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGUSR1, lambda *_: None)
            libc = ctypes.CDLL(None, use_errno=True)
            descriptor = os.open(image, os.O_RDWR)
            libc.fallocate(descriptor, ZERO_RANGE | 1, ctypes.c_int64(0), ctypes.c_int64(SIZE))
        os._exit(0)
    return child


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_fallocate_waits_for_nobody_whom_it_holds_up(workers: int, make_volume: MakeVolume) -> None:
    """What it has zeroed is dropped from the cache, though others read there and all workers are busy."""
    files = make_volume(XTS_512, SIZE)
    with (
        Mounted(
            files.payload, "--data-path", "native", "--workers", str(workers),
            header=files.header, key_file=files.key_file,
        ) as mount,
        readers(mount.image, 4),
    ):  # fmt: skip
        for _ in range(40):
            child = zero_all(mount.image)
            time.sleep(0.004)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGUSR1)
            wait_until(lambda: not alive(child), "the call that was interrupted returns")  # noqa: B023 - at once
            os.waitpid(child, 0)


@pytest.mark.root  # whose guard needs no file system for FUSE's control files
@pytest.mark.parametrize("data_path", ["native", "python"])
def test_a_daemon_that_is_killed_leaves_nobody_waiting(
    data_path: str, make_volume: MakeVolume, stale_pages: Path
) -> None:
    """Not even while the kernel waits for it on behalf of itself: to drop a page that is being read."""
    files = make_volume(XTS_512, SIZE)
    for _ in range(2):
        with Mounted(
            files.payload, "--data-path", data_path, header=files.header, key_file=files.key_file
        ) as mount:  # fmt: skip
            with subprocess.Popen(
                [stale_pages, mount.image, mount.image, "60", "aio"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as load:
                time.sleep(0.4)
                kill(mount.pid)
                wait_until(lambda: not alive(mount.pid), "the daemon is gone")
                assert load.wait(timeout=10) != 0
            fusermount(mount.mountpoint, lazily=True)


def test_the_guard_goes_with_the_daemon(make_volume: MakeVolume) -> None:
    """The process that watches over a mount ends with it."""
    files = make_volume(XTS_512, SIZE)
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        guards = Path(f"/proc/{mount.pid}/task/{mount.pid}/children").read_text().split()
        assert len(guards) <= 1  # none where the kernel's control files cannot be had
    assert not any(alive(int(guard)) for guard in guards)
