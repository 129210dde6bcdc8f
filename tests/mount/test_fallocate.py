"""fallocate(2) on the image, which the fast lane alone can serve."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.cryptsetup import XTS_512, XTS_4096, Format, LuksFiles, decrypted
from support.devices import ext4, loop_device
from support.mounts import Mounted
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

pytestmark = [pytest.mark.needs("fuse", "cryptsetup")]

SIZE = 4 * MIB
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE = 1, 2, 8, 16  # linux/falloc.h
FAST = ("--data-path", "native")

libc = ctypes.CDLL(None, use_errno=True)


def fallocate(descriptor: int, mode: int, offset: int, size: int) -> None:
    """Call fallocate(2), which Python does not have."""
    if libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(params=[XTS_512, XTS_4096], ids=lambda layout: str(layout.id))
def random_volume(request: pytest.FixtureRequest, make_volume: MakeVolume) -> LuksFiles:
    """Return a volume with random contents, so that zeros are seen."""
    layout: Format = request.param
    files = make_volume(layout)
    files.payload.write_bytes(os.urandom(SIZE))
    return files


@pytest.fixture
def image(random_volume: LuksFiles) -> Iterator[int]:
    """Return a descriptor of the mounted image."""
    with Mounted(random_volume.payload, *FAST, header=random_volume.header, key_file=random_volume.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


RANGES = [
    (0, SIZE),
    (1, 1),
    (0, 4096),
    (100, 300),
    (4095, 2),
    (4096, 4096),
    (512, 5000),
    (12345, 2 * MIB),
    (SIZE - 5, 5),
]


@pytest.mark.parametrize("mode", [ZERO_RANGE, ZERO_RANGE | KEEP_SIZE], ids=["zero", "zero-keep"])
def test_range_reads_as_zeros(mode: int, image: int) -> None:
    """The range is zeros and nothing else has changed, in the kernel's cache and beneath it."""
    model = bytearray(os.pread(image, SIZE, 0))  # all of it is in the cache now
    for offset, size in reversed(RANGES):
        fallocate(image, mode, offset, size)
        model[offset : offset + size] = bytes(size)
        assert os.pread(image, SIZE, 0) == model, (offset, size)
    os.fsync(image)
    os.posix_fadvise(image, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(image, SIZE, 0) == model


def test_zeros_are_encrypted(random_volume: LuksFiles) -> None:
    """What reads as zeros is ciphertext on the payload, and another program reads it as zeros too."""
    with Mounted(random_volume.payload, *FAST, header=random_volume.header, key_file=random_volume.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR)
        expected = bytearray(os.pread(descriptor, SIZE, 0))
        fallocate(descriptor, ZERO_RANGE | KEEP_SIZE, 5000, 2 * MIB)
        os.close(descriptor)
    expected[5000 : 5000 + 2 * MIB] = bytes(2 * MIB)

    assert bytes(512) not in random_volume.payload.read_bytes()
    assert decrypted(random_volume) == bytes(expected)


@pytest.mark.parametrize("offset", [SIZE - 4096, SIZE, SIZE + MIB])
def test_size_stays(offset: int, image: int) -> None:
    """With KEEP_SIZE a range may reach past the end, where nothing happens; without it, there is no space."""
    for mode in (0, ZERO_RANGE):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            fallocate(image, mode, offset, 8192)
    assert os.fstat(image).st_size == SIZE
    before = os.pread(image, SIZE, 0)
    for mode in (KEEP_SIZE, ZERO_RANGE | KEEP_SIZE):
        fallocate(image, mode, offset, 8192)
        assert os.fstat(image).st_size == SIZE
    assert os.pread(image, SIZE, 0) == before[:offset] + bytes(max(0, SIZE - offset))


@pytest.mark.parametrize("mode", [COLLAPSE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | ZERO_RANGE | KEEP_SIZE])
def test_other_modes_are_refused(mode: int, image: int) -> None:
    """A range cannot be taken out of the volume, and there are no holes: to write zeros instead would take space."""
    before = os.pread(image, MIB, 0)
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        fallocate(image, mode, 0, 4096)
    assert os.pread(image, MIB, 0) == before


@pytest.mark.root
@pytest.mark.needs("losetup", "mkfs.ext4")
def test_a_discard_takes_no_space(make_volume: MakeVolume) -> None:
    """What a file system on a loop device gives back is not written to: not by mkfs, not by fstrim."""
    files = make_volume(XTS_4096, size=256 * MIB)
    with (
        Mounted(files.payload, *FAST, header=files.header, key_file=files.key_file) as mount,
        loop_device(mount.image, "--sector-size", "4096") as device,
    ):
        subprocess.run([program("mkfs.ext4"), "-q", "-E", "lazy_itable_init=1", device], check=True)
        with ext4(device, files.payload.parent / "ext4") as tree:
            before = files.payload.stat().st_blocks
            subprocess.run([program("fstrim"), tree], check=False, capture_output=True)
            assert files.payload.stat().st_blocks <= before + 64
    assert files.payload.stat().st_blocks * 512 < 32 * MIB


def test_preallocation_reaches_payload(make_volume: MakeVolume) -> None:
    """Space for the image is space of the payload; what reads there is what read there before."""
    files = make_volume(XTS_4096, size=16 * MIB)
    assert files.payload.stat().st_blocks == 0  # sparse
    with Mounted(files.payload, *FAST, header=files.header, key_file=files.key_file) as mount:
        before = mount.image.read_bytes()
        descriptor = os.open(mount.image, os.O_RDWR)
        os.posix_fallocate(descriptor, 0, 16 * MIB)
        os.close(descriptor)
        assert files.payload.stat().st_blocks * 512 >= 16 * MIB
        assert mount.image.read_bytes() == before


def test_read_only_mount_refuses(random_volume: LuksFiles) -> None:
    """A read-only volume has nothing zeroed."""
    with Mounted(
        random_volume.payload, *FAST, "--read-only", header=random_volume.header, key_file=random_volume.key_file
    ) as mount:
        descriptor = os.open(mount.image, os.O_RDONLY)
        with pytest.raises(OSError, match=rf"{os.strerror(errno.EBADF)}|{os.strerror(errno.EROFS)}"):
            fallocate(descriptor, ZERO_RANGE | KEEP_SIZE, 0, 4096)
        os.close(descriptor)


ZERO_ALL = """
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, lambda *_: None)
libc = ctypes.CDLL(None, use_errno=True)
image = os.open(sys.argv[1], os.O_RDWR)
print("go", flush=True)
failed = libc.fallocate(image, 16, ctypes.c_int64(0), ctypes.c_int64(int(sys.argv[2])))
print(ctypes.get_errno() if failed else 0, flush=True)
"""


def test_interrupt_ends_it(make_volume: MakeVolume) -> None:
    """A large range can be given up half-way; what the cache shows is what is on the payload."""
    size = 64 << 30  # sparse: many seconds of zeros
    files = make_volume(XTS_4096, size=MIB)
    os.truncate(files.payload, size)
    with Mounted(files.payload, *FAST, header=files.header, key_file=files.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR)
        start = os.pread(descriptor, MIB, 0)  # in the cache, and no zeros
        with mmap.mmap(descriptor, MIB, access=mmap.ACCESS_READ) as seen:
            assert seen[:MIB] == start
            with subprocess.Popen(
                [sys.executable, "-c", ZERO_ALL, mount.image, str(size)], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "go\n"
                wait_until(lambda: files.payload.stat().st_blocks * 512 > 8 * MIB, "zeros arrive")
                process.send_signal(signal.SIGINT)
                assert int(process.stdout.readline()) == errno.EINTR
            assert files.payload.stat().st_blocks * 512 < size // 2
            assert seen[:MIB] == bytes(MIB)
        assert os.pread(descriptor, MIB, 0) == bytes(MIB)
        os.close(descriptor)
