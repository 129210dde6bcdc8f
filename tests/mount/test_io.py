"""Bytes in and out of the mounted image, in every way that programs use."""

from __future__ import annotations

import errno
import mmap
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cryptsetup import XTS_512, LuksFiles
from support.mounts import Mounted
from support.tools import program
from support.volumes import MIB, MakeVolume

import lukshdrfs as package

pytestmark = [pytest.mark.needs("fuse", "cryptsetup"), pytest.mark.each_data_path]

SIZE = 4 * MIB
PAGE = 4096


def plaintext(files: LuksFiles) -> bytes:
    """Return the plaintext, without the mount."""
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret, read_only=True) as volume:
        return bytes(volume.pread(volume.size, offset=0))


def aligned(size: int) -> mmap.mmap:
    """Return memory that starts at a page, as direct I/O wants it."""
    return mmap.mmap(-1, size)


def test_data_outlive_mount(volume: LuksFiles) -> None:
    """What is written is there at the next mount, and the payload holds no trace of it."""
    data = b"attack at dawn! " * 4096

    with (
        Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount,
        mount.image.open("r+b") as image,
    ):
        image.seek(12345)
        image.write(data)
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        assert mount.image.read_bytes()[12345 : 12345 + len(data)] == data
    assert b"attack at dawn" not in volume.payload.read_bytes()


@given(
    writes=st.lists(
        st.tuples(st.integers(0, 3 * PAGE), st.binary(min_size=1, max_size=2 * PAGE)), min_size=1, max_size=6
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_is_an_array_of_bytes(writes: list[tuple[int, bytes]], mounted: Mounted) -> None:
    """Any writes at any offsets leave what they would leave in memory."""
    descriptor = os.open(mounted.image, os.O_RDWR)
    try:
        model = bytearray(os.pread(descriptor, 6 * PAGE, 0))
        for offset, data in writes:
            assert os.pwrite(descriptor, data, offset) == len(data)
            model[offset : offset + len(data)] = data
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # read it from the daemon, not the cache
        assert os.pread(descriptor, 6 * PAGE, 0) == bytes(model)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
def test_cache_modes(cache: str, volume: LuksFiles) -> None:
    """Whatever the cache, what was written comes back, and is in the payload afterwards."""
    rng = random.Random(20)
    model = bytearray(plaintext(volume))

    with Mounted(volume.payload, "--cache", cache, header=volume.header, key_file=volume.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR)
        for _ in range(40):
            offset, data = rng.randrange(SIZE - 9000), rng.randbytes(rng.randrange(1, 9000))
            assert os.pwrite(descriptor, data, offset) == len(data)
            model[offset : offset + len(data)] = data
            assert os.pread(descriptor, len(data), offset) == data
        os.close(descriptor)
        assert mount.image.read_bytes() == bytes(model)
    assert plaintext(volume) == bytes(model)


@pytest.mark.parametrize("sectors", [512, 4096])
def test_direct_io(sectors: int, make_volume: MakeVolume, volume: LuksFiles) -> None:
    """O_DIRECT reads and writes, in blocks smaller than a sector of the volume too."""
    files = make_volume(XTS_512) if sectors == 512 else volume
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR | os.O_DIRECT)
        try:
            for offset, size in [(0, PAGE), (512, 512), (PAGE + 1024, 1536), (MIB, MIB)]:
                with aligned(size) as data, aligned(size) as back:
                    data.write(random.Random(offset).randbytes(size))
                    assert os.pwritev(descriptor, [data], offset) == size
                    assert os.preadv(descriptor, [back], offset) == size
                    assert back[:] == data[:]
        finally:
            os.close(descriptor)
    assert plaintext(files)[MIB : 2 * MIB] == random.Random(MIB).randbytes(MIB)


def payload_is_on_storage(files: LuksFiles, offset: int, data: bytes) -> bool:
    """Tell whether plaintext has reached the payload file, while the mount goes on."""
    # a second volume on a copy: the payload itself is locked
    copy = files.payload.with_suffix(".copy")
    copy.write_bytes(files.payload.read_bytes())
    with package.open_volume(copy, header=files.header, passphrase=files.secret, read_only=True) as volume:
        return bytes(volume.pread(len(data), offset=offset)) == data


@pytest.mark.parametrize("sync", ["fsync", "fdatasync", "O_SYNC", "O_DSYNC"])
def test_synced_data_are_in_payload(sync: str, mounted: Mounted, volume: LuksFiles) -> None:
    """What a program has synced is in the payload, not only in the kernel's or the daemon's memory."""
    flags = os.O_RDWR | {"O_SYNC": os.O_SYNC, "O_DSYNC": os.O_DSYNC}.get(sync, 0)
    descriptor = os.open(mounted.image, flags)
    try:
        data = random.Random(sync).randbytes(10000)
        os.pwrite(descriptor, data, 5001)
        if sync == "fsync":
            os.fsync(descriptor)
        elif sync == "fdatasync":
            os.fdatasync(descriptor)
        assert payload_is_on_storage(volume, 5001, data)
    finally:
        os.close(descriptor)


@pytest.mark.root
@pytest.mark.needs("strace")
@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync], ids=["fsync", "fdatasync"])
def test_sync_reaches_storage(sync: Callable[[int], None], mounted: Mounted, tmp_path: Path) -> None:
    """A sync of the image is answered only after a sync of the payload, which survives the machine's failure."""
    trace = tmp_path / "trace"
    options = ["-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace), "-p", str(mounted.pid)]
    with mounted.image.open("r+b", buffering=0) as image:
        with subprocess.Popen([program("strace"), *options], stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            while b"attached" not in tracer.stderr.readline():
                assert tracer.poll() is None
            image.write(b"x")
            before = trace.read_text()
            sync(image.fileno())
            tracer.terminate()
        synced = trace.read_text().removeprefix(before)
    assert re.search(rf"f(data)?sync\(\d+<{re.escape(str(mounted.payload))}>\) += 0", synced), synced


def test_close_brings_data_to_payload(mounted: Mounted, volume: LuksFiles) -> None:
    """A close after a write hands everything to the payload: no data wait for the unmount."""
    with mounted.image.open("r+b", buffering=0) as image:
        image.write(b"closed")
    assert payload_is_on_storage(volume, 0, b"closed")


def test_memory_map_reads_and_writes(mounted: Mounted, volume: LuksFiles) -> None:
    """A shared map shows the image, and what is stored through it is the image's."""
    with mounted.image.open("r+b") as image:
        image.write(b"first")
        image.flush()
        with mmap.mmap(image.fileno(), 64 * PAGE) as memory:
            assert memory[:5] == b"first"
            memory[PAGE - 2 : PAGE + 2] = b"edge"
            memory[100:105] = b"store"
            memory.flush()
        image.seek(100)
        assert image.read(5) == b"store"
        assert payload_is_on_storage(volume, PAGE - 2, b"edge")
    with mounted.image.open("rb") as again, mmap.mmap(again.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert len(memory) == SIZE
        assert memory[PAGE - 2 : PAGE + 2] == b"edge"


@pytest.fixture
def descriptor(mounted: Mounted) -> Iterator[int]:
    descriptor = os.open(mounted.image, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_reads_end_at_end(descriptor: int) -> None:
    """A read across the end is short, and one past it is empty."""
    assert len(os.pread(descriptor, PAGE, SIZE - 100)) == 100
    assert os.pread(descriptor, PAGE, SIZE) == b""
    assert os.pread(descriptor, PAGE, SIZE + 10 * PAGE) == b""


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("offset", [SIZE, SIZE + PAGE])
def test_write_past_end_finds_no_space(offset: int, direct: bool, mounted: Mounted) -> None:
    """There is no space behind the end, as on a block device, and the size stays."""
    descriptor = os.open(mounted.image, os.O_RDWR | (os.O_DIRECT if direct else 0))
    try:
        with aligned(PAGE) as data, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.pwritev(descriptor, [data], offset)
            os.fsync(descriptor)
    finally:
        # with a writeback cache the kernel has taken the data, and says so at the latest now
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - the close may, and need not, fail
    assert mounted.image.stat().st_size == SIZE


def test_write_across_end_is_short_or_refused(mounted: Mounted) -> None:
    """Of a write across the end, what fits may be written; nothing lies behind the end afterwards."""
    descriptor = os.open(mounted.image, os.O_RDWR)
    written = 0
    try:
        written = os.pwrite(descriptor, b"e" * PAGE, SIZE - 100)
        os.fsync(descriptor)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - short or refused: both are a block device's answers
    finally:
        os.close(descriptor)
    assert written in {0, 100}
    assert mounted.image.stat().st_size == SIZE
    assert mounted.payload.stat().st_size == SIZE
    tail = mounted.image.read_bytes()[-100:]
    assert tail == b"e" * 100 or written == 0


def test_truncation_to_same_size_is_fine(mounted: Mounted, descriptor: int) -> None:
    """Truncating to the size it has changes nothing."""
    os.pwrite(descriptor, b"stays", 0)

    os.truncate(mounted.image, SIZE)
    os.ftruncate(descriptor, SIZE)
    assert os.pread(descriptor, 5, 0) == b"stays"


@pytest.mark.parametrize("size", [0, 1, SIZE - 512, SIZE + 512])
def test_truncation_to_other_size_is_refused(size: int, descriptor: int) -> None:
    """The size is the payload's business."""
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, size)
    assert os.fstat(descriptor).st_size == SIZE


def test_opening_with_truncation_writes_nothing(mounted: Mounted) -> None:
    """Whoever empties a file relies on zeros afterwards: that is refused before anything is written."""
    with mounted.image.open("r+b") as image:
        image.write(b"start")
    before = mounted.image.read_bytes()

    with pytest.raises(PermissionError):
        mounted.image.open("wb")
    assert mounted.image.read_bytes() == before


def test_appending_finds_no_space(mounted: Mounted) -> None:
    """O_APPEND goes to the end, where there is no space."""
    with (
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
        mounted.image.open("ab", buffering=0) as image,
    ):
        image.write(b"more")
        os.fsync(image.fileno())
    assert mounted.image.stat().st_size == SIZE


def test_replaced_header_has_no_effect(mounted: Mounted, volume: LuksFiles) -> None:
    """The header is read once: what happens to its file later does not reach the mount."""
    with mounted.image.open("r+b") as image:
        image.write(b"before")
    volume.header.write_bytes(bytes(volume.header.stat().st_size))

    with mounted.image.open("r+b") as image:
        image.seek(6)
        image.write(b" and after")
    assert mounted.image.read_bytes()[:16] == b"before and after"


def test_payload_cut_off_gives_errors(mounted: Mounted) -> None:
    """When the payload has been cut off beneath the mount, reads of what is gone fail, and the rest goes on."""
    os.truncate(mounted.payload, MIB)
    descriptor = os.open(mounted.image, os.O_RDONLY | os.O_DIRECT)
    try:
        with aligned(PAGE) as data:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.preadv(descriptor, [data], 2 * MIB)
            assert os.preadv(descriptor, [data], 0) == PAGE
    finally:
        os.close(descriptor)
        os.truncate(mounted.payload, SIZE)
