"""Where headers come from: paths, descriptors and streams, read once, pinned and locked."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.golden import golden_volumes, unpacked

import lukshdrfs
from lukshdrfs.errors import DeviceError, HeaderError, LukshdrfsError
from lukshdrfs.headers import HeaderPin, read_header, source_descriptor
from lukshdrfs.luks.header import MAX_EXTENT, parse_header
from lukshdrfs.luks.keys.unlock import unlock

LUKS2 = unpacked("luks2-aes-xts-256-s4096.header.img.gz")
LUKS1 = unpacked("luks1-aes-cbc-essiv-128.header.img.gz")
DIGEST = hashlib.sha256(LUKS2).hexdigest()
UUID = parse_header(LUKS2).uuid


@pytest.fixture(params=["luks1", "luks2"])
def content(request: pytest.FixtureRequest) -> bytes:
    """Return a header of each version."""
    return {"luks1": LUKS1, "luks2": LUKS2}[request.param]


@pytest.fixture
def header_file(tmp_path: Path) -> Path:
    """Return a file with a LUKS2 header."""
    path = tmp_path / "header.img"
    path.write_bytes(LUKS2)
    return path


@contextlib.contextmanager
def descriptor_on(path: Path) -> Iterator[int]:
    """Open a file for a moment."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def pipe_with(data: bytes) -> Iterator[int]:
    """Have a thread write something into a pipe; yield the end to read from."""
    receiver, sender = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(sender, "wb") as stream:
            stream.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield receiver
    finally:
        os.close(receiver)
        thread.join()


def test_a_path_a_descriptor_and_a_stream_give_the_same(content: bytes, tmp_path: Path) -> None:
    """A header is the same, whichever way it comes, and from standard input too."""
    path = tmp_path / "header"
    path.write_bytes(content)
    expected = parse_header(content)

    assert read_header(path) == read_header(str(path)) == expected
    with descriptor_on(path) as descriptor:
        assert read_header(f"fd:{descriptor}") == expected
    with pipe_with(content) as descriptor:
        assert read_header(f"fd:{descriptor}") == expected
    program = "from lukshdrfs.headers import read_header; print(read_header('-').uuid)"
    with path.open("rb") as stdin:
        done = subprocess.run([sys.executable, "-c", program], stdin=stdin, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected.uuid


def test_a_fifo_is_read_to_its_end(tmp_path: Path) -> None:
    """A named pipe is waited for and read, so that another program can make the header."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    thread = threading.Thread(target=fifo.write_bytes, args=(LUKS2,))
    thread.start()
    try:
        assert read_header(fifo).uuid == UUID
    finally:
        thread.join()


def test_a_descriptors_position_does_not_matter_and_stays(header_file: Path) -> None:
    """A given descriptor is read from the file's start, and it stays open."""
    with descriptor_on(header_file) as descriptor:
        os.lseek(descriptor, 5000, os.SEEK_SET)
        assert read_header(f"fd:{descriptor}").uuid == UUID
        assert read_header(f"fd:{descriptor}").uuid == UUID


def test_what_follows_the_header_is_not_read(tmp_path: Path) -> None:
    """Of a file with terabytes behind the header, the header alone is read."""
    path = tmp_path / "attached"
    path.write_bytes(LUKS2)
    os.truncate(path, 1 << 42)

    assert len(read_header(path).area) == len(parse_header(LUKS2).area)


@pytest.mark.parametrize(
    ("name", "expected"), [("-", 0), ("fd:0", 0), ("fd:17", 17), ("header", None), ("./fd:3", None), ("", None)]
)
def test_names_of_descriptors(name: str, expected: int | None) -> None:
    """`-` and `fd:N` are descriptors; anything else is a path."""
    assert source_descriptor(name) == expected


@pytest.mark.parametrize("name", ["fd:", "fd:x", "fd:-1", "fd:1.0", "fd: 1", "fd:+1", "fd:0x3"])
def test_descriptors_that_are_no_numbers_are_refused(name: str) -> None:
    """`fd:` without a number behind it is told, and not taken for a path."""
    with pytest.raises(DeviceError, match=re.escape(name)):
        source_descriptor(name)


@pytest.mark.parametrize(
    "name", ["fd:9999", "fd:2147483647", "fd:4294967296", "fd:99999999999999999999", "fd:" + "9" * 5000]
)
def test_descriptors_that_are_not_open_are_told(name: str) -> None:
    """A descriptor that nobody gave us, however large its number, is an error of ours, not of Python."""
    with pytest.raises(DeviceError):
        read_header(name)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    """A missing file, a directory and an empty file are refused by name, as a wrong header."""
    (tmp_path / "empty").touch()
    for name in ("missing", "", "empty", "missing/below"):
        with pytest.raises(LukshdrfsError) as caught:
            read_header(tmp_path / name)
        assert caught.value.exit_code == 4
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("pin", [HeaderPin(sha256=DIGEST), HeaderPin(DIGEST.upper()), HeaderPin(uuid=UUID),
                                 HeaderPin(uuid=UUID.upper()), HeaderPin(DIGEST, UUID), HeaderPin()])  # fmt: skip
def test_a_pinned_header_is_read(header_file: Path, pin: HeaderPin) -> None:
    """The header that was pinned, by digest or by UUID in either case, is accepted from file and stream."""
    assert read_header(header_file, pin).uuid == UUID
    with pipe_with(LUKS2) as descriptor:
        assert read_header(f"fd:{descriptor}", pin).uuid == UUID


@pytest.mark.parametrize(
    "pin",
    [HeaderPin(sha256="0" * 64), HeaderPin(sha256=DIGEST[:-1]), HeaderPin(sha256="x"), HeaderPin(sha256="é"),
     HeaderPin(uuid="00000000-0000-0000-0000-000000000000"), HeaderPin(uuid="x"), HeaderPin(uuid="é"),
     HeaderPin(DIGEST, "x"), HeaderPin("0" * 64, UUID)],
)  # fmt: skip
def test_any_other_header_is_refused(header_file: Path, pin: HeaderPin) -> None:
    """A header that is not the pinned one is refused, and the message says which one it is."""
    with pytest.raises(HeaderError, match="pinned") as caught:
        read_header(header_file, pin)
    assert DIGEST in str(caught.value) or UUID in str(caught.value)
    with pipe_with(LUKS2) as descriptor, pytest.raises(HeaderError, match="pinned"):
        read_header(f"fd:{descriptor}", pin)


@pytest.mark.parametrize("place", [0, 500, 5000, 40_000, len(LUKS2) - 1])
def test_a_digest_pins_every_byte_of_the_file(tmp_path: Path, place: int) -> None:
    """One bit changed anywhere in the file, key material and unused bytes included, and it is not the pinned one."""
    path = tmp_path / "changed"
    path.write_bytes(LUKS2[:place] + bytes([LUKS2[place] ^ 1]) + LUKS2[place + 1 :])
    with pytest.raises(HeaderError, match="pinned"):
        read_header(path, HeaderPin(sha256=DIGEST))
    path.write_bytes(LUKS2 + b"\0")
    with pytest.raises(HeaderError, match="pinned"):
        read_header(path, HeaderPin(sha256=DIGEST))


def test_a_header_that_is_being_edited_is_waited_for(header_file: Path) -> None:
    """While another program holds the exclusive lock we wait, and what it wrote meanwhile is what is read."""
    editor = os.open(header_file, os.O_RDWR)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(read_header(header_file).label))
    try:
        fcntl.flock(editor, fcntl.LOCK_EX)
        os.pwrite(editor, bytes(4096), 0)  # half-way through an edit, there is no valid header
        os.pwrite(editor, bytes(4096), 16384)
        thread.start()
        wait_for_a_waiter(header_file)
        os.pwrite(editor, LUKS2, 0)
        assert found == []
    finally:
        os.close(editor)
        thread.join(20)
    assert found == [parse_header(LUKS2).label]


def wait_for_a_waiter(path: Path) -> None:
    """Return once a second descriptor is open on a file: somebody is about to lock it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        count = 0
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += entry.resolve() == path
        if count >= 2:
            return
        time.sleep(0.005)
    raise AssertionError(f"nobody opened {path}")


def test_readers_do_not_wait_for_each_other(header_file: Path) -> None:
    """A shared lock, as of another reader, holds nobody up; ours is gone when the header is read."""
    with descriptor_on(header_file) as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        start = time.monotonic()
        read_header(header_file)
        assert time.monotonic() - start < 5
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_header_that_is_replaced_later_has_no_effect(tmp_path: Path) -> None:
    """After a header was read, its file may change or go: the keyslots are in what was read."""
    golden = golden_volumes()["luks2-aes-xts-256-s4096"]
    path, _payload = golden.unpack(tmp_path)
    assert path is not None
    header = read_header(path)
    path.write_bytes(bytes(len(LUKS2)))
    path.unlink()

    with lukshdrfs.secret.SecretBytes.copy_of(golden.keys[0].secret) as passphrase:
        key = unlock(header, header.digests[0], passphrase).volume_key
    assert bytes(key.view).hex() == golden.fields["volume_key_hex"]


def test_an_endless_stream_is_refused() -> None:
    """A stream that is longer than any header can be is refused, and not read on."""
    with Path("/dev/zero").open("rb") as zeros:
        program = "from lukshdrfs.headers import read_header; read_header('-')"
        done = subprocess.run(
            ["sh", "-c", 'head -c 1T | exec "$0" -c "$1"', sys.executable, program],
            stdin=zeros, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert f"HeaderError: header - is larger than {MAX_EXTENT} bytes" in done.stderr


def test_a_pinned_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """A pin is over the whole file, so one that is larger than any header is refused before it is read."""
    path = tmp_path / "large"
    path.write_bytes(LUKS2)
    os.truncate(path, 1 << 42)
    with pytest.raises(HeaderError, match="larger"):
        read_header(path, HeaderPin(sha256=DIGEST))


def test_a_damaged_copy_is_told_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What could be worked around is in the log, with the header's name, and the file stays as it is."""
    path = tmp_path / "damaged"
    damaged = LUKS2[:16384] + bytes(16384) + LUKS2[32768:]
    path.write_bytes(damaged)

    assert read_header(path).uuid == UUID
    assert str(path) in caplog.text
    assert path.read_bytes() == damaged


@pytest.mark.needs("blkid")
def test_a_damaged_header_under_something_else_is_refused(tmp_path: Path) -> None:
    """If a copy is damaged and another format's signature is there, the place has another use now."""
    path = tmp_path / "overwritten"
    swap = bytearray(4096)
    swap[4086:4096] = b"SWAPSPACE2"
    swap[1024:1028] = (1).to_bytes(4, "little")
    swap[1028:1032] = (100).to_bytes(4, "little")
    path.write_bytes(bytes(swap) + LUKS2[4096:])
    with pytest.raises(HeaderError, match="overwritten"):
        read_header(path)
