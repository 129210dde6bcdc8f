"""FilePayload: a file as a payload, its failures, and its locks against other programs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tools import program

from lukshdrfs.errors import DeviceError, InUse, PayloadError, ReadOnlyError
from lukshdrfs.payload import FilePayload

SIZE = 20_000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a file with known content."""
    path = tmp_path / "payload.img"
    path.write_bytes(bytes(n % 251 for n in range(SIZE)))
    return path


def read(payload: FilePayload, size: int, offset: int) -> bytes:
    """Read through a buffer."""
    buffer = bytearray(size)
    payload.read_into(memoryview(buffer), offset)
    return bytes(buffer)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, SIZE), st.binary(max_size=6000)), max_size=6))
def test_a_file_is_read_and_written_like_a_bytearray(writes: list[tuple[int, bytes]]) -> None:
    """What is written at an offset is read there, by the payload and by others, and the size stays."""
    path = Path(f"/proc/self/fd/{os.memfd_create('payload')}")
    try:
        path.write_bytes(bytes(SIZE))
        model = bytearray(SIZE)
        with FilePayload.open(path, read_only=False) as payload:
            for offset, data in writes:
                piece = data[: SIZE - offset]
                payload.write(memoryview(piece), offset)
                model[offset : offset + len(piece)] = piece
                assert read(payload, len(piece), offset) == piece
            payload.flush()
            assert path.read_bytes() == read(payload, SIZE, 0) == model
            assert payload.size == SIZE
    finally:
        os.close(int(path.name))


@pytest.mark.parametrize(("size", "offset"), [(1, SIZE), (SIZE + 1, 0), (2, SIZE - 1), (10, 1 << 40)])
def test_a_read_past_the_end_is_an_error(image: Path, size: int, offset: int) -> None:
    """A payload that ends before what is asked for is EIO, and the message says where it ends."""
    with FilePayload.open(image, read_only=True) as payload, pytest.raises(PayloadError) as caught:
        read(payload, size, offset)
    assert caught.value.errno == errno.EIO
    assert str(max(offset, SIZE)) in str(caught.value)


def test_a_payload_that_is_cut_off_while_open_is_an_error(image: Path) -> None:
    """After somebody cuts the file, reads behind its new end are EIO, and never zeros."""
    with FilePayload.open(image, read_only=False) as payload:
        os.truncate(image, 5000)
        assert len(read(payload, 5000, 0)) == 5000
        with pytest.raises(PayloadError, match="5000") as caught:
            read(payload, 4096, 4096)
        assert caught.value.errno == errno.EIO
        assert payload.size == SIZE, "the size is that of when it was opened"


def test_the_storages_errno_comes_out(tmp_path: Path) -> None:
    """What the kernel answers to a write is in the error: here, EFBIG at the process's file size limit."""
    path = tmp_path / "limited"
    path.write_bytes(bytes(8192))
    program = f"""
import errno, resource, signal
from lukshdrfs.errors import PayloadError
from lukshdrfs.payload import FilePayload
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
payload = FilePayload.open({str(path)!r}, read_only=False)
payload.write(memoryview(bytes(4096)), 0)
try:
    payload.write(memoryview(b"x" * 4096), 2048)  # half of it fits, then the rest is tried
except PayloadError as error:
    print(errno.errorcode[error.errno], "byte 4096" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["EFBIG", "True"]
    assert path.read_bytes() == bytes(2048) + b"x" * 2048 + bytes(4096)


def test_nothing_is_written_to_a_read_only_payload(image: Path) -> None:
    """A payload opened for reading refuses to write before the storage is asked, and to flush does nothing."""
    before = image.read_bytes()
    with FilePayload.open(image, read_only=True) as payload:
        assert payload.read_only
        with pytest.raises(ReadOnlyError) as caught:
            payload.write(memoryview(b"x"), 0)
        payload.flush()
    assert caught.value.errno == errno.EROFS
    assert image.read_bytes() == before


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("missing", "No such file"), (".", "directory"), ("fifo", "neither"), ("missing/below", "No such file"),
     ("file/below", "Not a directory"), ("loop", "symbolic links")],
)  # fmt: skip
def test_what_is_no_payload_is_told(tmp_path: Path, name: str, kind: str, *, read_only: bool) -> None:
    """A missing file, a directory, a FIFO and a broken path are refused at once, by name."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DeviceError, match=kind) as caught:
        FilePayload.open(tmp_path / name, read_only=read_only)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every file")
def test_a_file_that_may_only_be_read_says_the_way_out(image: Path) -> None:
    """A payload that may not be written to opens for reading, and the message says how."""
    image.chmod(0o400)
    with pytest.raises(DeviceError, match="--read-only"):
        FilePayload.open(image, read_only=False)
    FilePayload.open(image, read_only=True).close()


def test_two_paths_to_one_file_are_told(image: Path, tmp_path: Path) -> None:
    """A payload's identity is the file's, by whichever name it was opened."""
    other = tmp_path / "other.img"
    other.write_bytes(b"x")
    (tmp_path / "link").symlink_to(image)
    (tmp_path / "hard").hardlink_to(image)
    found = []
    for path in (image, tmp_path / "link", tmp_path / "hard", other):
        with FilePayload.open(path, read_only=True) as payload:
            found.append(payload.identity())

    assert found[0] == found[1] == found[2] != found[3]


WRITES = """
from lukshdrfs.payload import FilePayload
import sys
with FilePayload.open(sys.argv[1], read_only=False, write_through=sys.argv[2] == "through") as payload:
    payload.write(memoryview(b"x" * 100_000), 5, synchronous=sys.argv[3] == "synchronous")
"""


@pytest.mark.needs("strace")
@pytest.mark.parametrize("through", ["through", "back"])
@pytest.mark.parametrize("synchronous", ["synchronous", "not"])
def test_write_through_is_synchronous(image: Path, tmp_path: Path, through: str, synchronous: str) -> None:
    """With `write_through` or `synchronous` the kernel is asked for a synchronous write; without, it is not."""
    trace = tmp_path / "trace"
    strace = [program("strace"), "-f", "-e", "trace=pwrite64,pwritev2", "-o", str(trace)]
    subprocess.run([*strace, sys.executable, "-c", WRITES, image, through, synchronous], check=True)
    assert image.read_bytes()[5:100_005] == b"x" * 100_000
    assert ("RWF_DSYNC" in trace.read_text()) == (through == "through" or synchronous == "synchronous")


@pytest.mark.parametrize("read_only", [True, False])
def test_the_mode_of_the_descriptor(image: Path, *, read_only: bool) -> None:
    """What is for reading only is opened so."""
    with FilePayload.open(image, read_only=read_only) as payload:
        flags = fcntl.fcntl(payload.descriptor, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == (os.O_RDONLY if read_only else os.O_RDWR)


def test_synchronous_writes_where_the_file_cannot_be_opened_again(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are done one at a time then; and at the end nothing stays open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for refused in (False, True):
        with FilePayload.open(image, read_only=False) as payload, monkeypatch.context() as patch:
            if refused:
                patch.setattr(os, "open", raising(PermissionError(errno.EACCES, "refused")))
            payload.write(memoryview(b"safe"), 3, synchronous=True)
            payload.flush()
        assert image.read_bytes()[3:7] == b"safe"
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def raising(error: OSError) -> Callable[..., int]:
    """Return a function that raises an error."""

    def refuse(*_args: object, **_more: object) -> int:
        raise error

    return refuse


def test_the_descriptor_is_not_inherited(image: Path) -> None:
    """A program that is started meanwhile does not get the payload, nor its locks."""
    with FilePayload.open(image, read_only=False) as payload:
        assert payload.descriptor is not None
        assert fcntl.fcntl(payload.descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_closing_twice_is_fine(image: Path) -> None:
    """`close` may be called again, and a closed payload fails as one."""
    payload = FilePayload.open(image, read_only=False)
    payload.close()
    payload.close()
    for use in (lambda: read(payload, 1, 0), lambda: payload.write(memoryview(b"x"), 0)):
        with pytest.raises(PayloadError) as caught:
            use()
        assert caught.value.errno == errno.EBADF


def test_it_is_modified_when_the_file_is(image: Path) -> None:
    """The time of modification is the file's."""
    os.utime(image, ns=(1, 123_456_789_000))
    with FilePayload.open(image, read_only=True) as payload:
        assert payload.modified_ns() == 123_456_789_000


# --- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_read_only", "second_read_only", "allowed"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_there_is_one_writer_or_readers(
    image: Path, *, first_read_only: bool, second_read_only: bool, allowed: bool
) -> None:
    """Readers share a payload; a writer shares with nobody, in either order; afterwards it is free again."""
    with FilePayload.open(image, read_only=first_read_only):
        if allowed:
            FilePayload.open(image, read_only=second_read_only).close()
        else:
            with pytest.raises(InUse) as caught:
                FilePayload.open(image, read_only=second_read_only)
            assert caught.value.exit_code == 5
            assert str(image) in str(caught.value)
    FilePayload.open(image, read_only=False).close()


@contextlib.contextmanager
def opened_elsewhere(image: Path, *, read_only: bool) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the payload open."""
    program = f"""
import sys
from lukshdrfs.payload import FilePayload
payload = FilePayload.open({str(image)!r}, read_only={read_only})
print("open", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_kept_out(image: Path) -> None:
    """The locks are between processes too: one writer, and readers beside readers."""
    with opened_elsewhere(image, read_only=False):
        for read_only in (True, False):
            with pytest.raises(InUse):
                FilePayload.open(image, read_only=read_only)
    with opened_elsewhere(image, read_only=True):
        FilePayload.open(image, read_only=True).close()
        with pytest.raises(InUse):
            FilePayload.open(image, read_only=False)


def test_a_killed_process_leaves_no_lock(image: Path) -> None:
    """After SIGKILL the payload can be opened for writing as soon as the process is gone."""
    with opened_elsewhere(image, read_only=False) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        FilePayload.open(image, read_only=False).close()


QEMU_FLOCK = struct.Struct("@hhqqi0q")


def lock_bytes(descriptor: int, kind: int, *offsets: int) -> None:
    """Take OFD locks on single bytes, as QEMU does (block/file-posix.c, `raw_apply_lock_bytes`)."""
    for offset in offsets:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, QEMU_FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))


@pytest.mark.parametrize(
    ("held", "reader_allowed"),
    [
        ((100,), True),  # reads, and lets others do as they like
        ((100, 201, 203), True),  # reads, and wants nobody to write or resize
        ((100, 101, 103, 201, 203), False),  # a QEMU that writes
        ((101,), False),
        ((103,), False),
        ((200,), False),  # wants nobody to read
    ],
)
def test_qemus_locks_are_respected(image: Path, held: tuple[int, ...], *, reader_allowed: bool) -> None:
    """What QEMU says it does or does not share decides whether we open; we never write where it reads unshared."""
    descriptor = os.open(image, os.O_RDWR)
    try:
        lock_bytes(descriptor, fcntl.F_RDLCK, *held)
        if reader_allowed:
            FilePayload.open(image, read_only=True).close()
        else:
            with pytest.raises(InUse):
                FilePayload.open(image, read_only=True)
        if held == (100,):
            FilePayload.open(image, read_only=False).close()
        else:
            with pytest.raises(InUse):
                FilePayload.open(image, read_only=False)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("read_only", "expected"), [(True, {100, 201, 203}), (False, {100, 101, 103, 201, 203})])
def test_our_locks_are_qemus(image: Path, expected: set[int], *, read_only: bool) -> None:
    """The bytes that we hold are those by which QEMU sees a reader or a writer that shares with readers only."""
    descriptor = os.open(image, os.O_RDWR)
    try:
        with FilePayload.open(image, read_only=read_only):
            found = set()
            for byte in (*range(100, 110), *range(200, 210)):
                query = QEMU_FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
                answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, query)
                if QEMU_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
                    found.add(byte)
        assert found == expected
    finally:
        os.close(descriptor)
