"""Which bytes of which source are the secret."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lukshdrfs.cli.secrets.reading import MAX_KEY_FILE
from lukshdrfs.cli.secrets.source import SecretSource
from lukshdrfs.errors import DeviceError, LukshdrfsError, UsageError

CONTENTS = {
    "plain": b"pw",
    "newline": b"pw\n",
    "carriage return": b"pw\r\n",
    "newline inside": b"p\nw",
    "two newlines": b"pw\n\n",
    "newline first": b"\npw",
    "nul inside": b"p\0w",
    "nul at the end": b"pw\0",
    "space at the ends": b" pw ",
    "not utf-8": b"p\xff\xfew",
    "composed": "\u00e9".encode(),
    "decomposed": "e\u0301".encode(),
    "latin-1": b"\xe9",
    "empty": b"",
    "one newline": b"\n",
}
LINES = {
    "plain": b"pw",
    "newline": b"pw",
    "carriage return": b"pw\r",
    "newline inside": b"p",
    "two newlines": b"pw",
    "newline first": b"",
    "nul inside": b"p\0w",
    "nul at the end": b"pw\0",
    "space at the ends": b" pw ",
    "not utf-8": b"p\xff\xfew",
    "composed": b"\xc3\xa9",
    "decomposed": b"e\xcc\x81",
    "latin-1": b"\xe9",
    "empty": b"",
    "one newline": b"",
}
"""What is left of each content when it counts as a line."""


def read(source: SecretSource) -> bytes:
    """Return a secret's bytes."""
    with source.read("a prompt that is not shown: ") as secret:
        return bytes(secret.view)


def read_stdin(data: bytes, source: str = "SecretSource()") -> bytes:
    """Return the secret that another process takes from its standard input, a pipe."""
    program = f"""
import sys
from lukshdrfs.cli.secrets.source import SecretSource
with {source}.read("a prompt: ") as secret:
    sys.stdout.buffer.write(bytes(secret.view))
"""
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert done.stderr == b"", "nothing is asked where nobody is"
    return done.stdout


@pytest.mark.parametrize("name", CONTENTS)
def test_a_key_file_counts_to_the_last_byte(name: str, tmp_path: Path) -> None:
    """Every byte of a key file is the key, newlines and NULs included, from a path and from a descriptor."""
    path = tmp_path / "key"
    path.write_bytes(CONTENTS[name])

    assert read(SecretSource(key_file=str(path))) == CONTENTS[name]
    assert read(SecretSource(volume_key_file=str(path))) == CONTENTS[name]
    with path.open("rb") as stream:
        assert read(SecretSource(key_file=f"fd:{stream.fileno()}")) == CONTENTS[name]


@pytest.mark.parametrize("name", CONTENTS)
def test_a_passphrase_file_counts_to_its_first_newline(name: str, tmp_path: Path) -> None:
    """The first line of a passphrase file is the passphrase; a carriage return before the newline belongs to it."""
    path = tmp_path / "passphrase"
    path.write_bytes(CONTENTS[name])

    assert read(SecretSource(passphrase_file=str(path))) == LINES[name]


@pytest.mark.parametrize("name", ["plain", "newline", "carriage return", "newline inside", "nul inside", "one newline"])
def test_standard_input_depends_on_what_it_is_named_for(name: str) -> None:
    """A pipe is a line if no source is named or it is the passphrase file, and everything if it is the key file."""
    assert read_stdin(CONTENTS[name]) == LINES[name]
    assert read_stdin(CONTENTS[name], "SecretSource(passphrase_file='-')") == LINES[name]
    assert read_stdin(CONTENTS[name], "SecretSource(key_file='-')") == CONTENTS[name]


def test_what_follows_the_line_is_left_in_the_pipe() -> None:
    """Only the line is taken from a descriptor: what comes after it is somebody else's."""
    receiver, sender = os.pipe()
    os.write(sender, b"first\nsecond\nthird")
    os.close(sender)
    source = SecretSource(passphrase_file=f"fd:{receiver}")

    assert [read(source) for _ in range(3)] == [b"first", b"second", b"third"]
    with pytest.raises(UsageError, match="nothing came"):
        read(source)
    os.close(receiver)


@pytest.mark.parametrize("size", [0, 1, 511, 512])
@pytest.mark.parametrize("end", [b"", b"\n", b"\nmore" * 1000])
def test_a_line_may_have_512_bytes(size: int, end: bytes, tmp_path: Path) -> None:
    """A line of up to 512 bytes is the passphrase, whatever follows it."""
    path = tmp_path / "passphrase"
    path.write_bytes(b"x" * size + end)

    assert read(SecretSource(passphrase_file=str(path))) == b"x" * size


@pytest.mark.parametrize("content", [b"x" * 513, b"x" * 513 + b"\n", b"x" * 100_000])
def test_a_longer_line_is_refused_and_not_cut(content: bytes, tmp_path: Path) -> None:
    """A line of 513 bytes is refused with the way out, and never cut silently."""
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="--key-file"):
        read(SecretSource(passphrase_file=str(path)))


@pytest.mark.parametrize("size", [4095, 4096, 4097, 8192, 100_000, MAX_KEY_FILE - 1, MAX_KEY_FILE])
def test_a_key_file_may_have_8_mib(size: int, tmp_path: Path) -> None:
    """A key file of up to 8 MiB is taken whole."""
    path = tmp_path / "key"
    content = os.urandom(size)
    path.write_bytes(content)

    assert read(SecretSource(key_file=str(path))) == content


def test_a_larger_key_file_is_refused_and_not_cut(tmp_path: Path) -> None:
    """8 MiB and one byte are refused, and so is a source that never ends; a part of either can be named."""
    path = tmp_path / "key"
    path.write_bytes(bytes(MAX_KEY_FILE + 1))
    for name in (str(path), "/dev/zero"):
        with pytest.raises(UsageError, match="--keyfile-size"):
            read(SecretSource(key_file=name))
        assert read(SecretSource(key_file=name, keyfile_size=10)) == bytes(10)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100), st.integers(0, 110), st.none() | st.integers(1, 110))
def test_a_part_of_a_key_file(tmp_path: Path, content: bytes, offset: int, size: int | None) -> None:
    """Offset and size name a part of a key file, in a file and in a pipe; a part that is not there is refused."""
    path = tmp_path / "key"
    path.write_bytes(content)
    receiver, sender = os.pipe()
    os.write(sender, content)
    os.close(sender)
    there = offset <= len(content) and (size is None or offset + size <= len(content))
    expected = content[offset:] if size is None else content[offset : offset + size]
    try:
        for name in (str(path), f"fd:{receiver}"):
            source = SecretSource(key_file=name, keyfile_offset=offset, keyfile_size=size)
            if there and (content or name == str(path)):
                assert read(source) == expected
            else:
                with pytest.raises(UsageError, match=r"byte|nothing came"):
                    read(source)
    finally:
        os.close(receiver)


@pytest.mark.parametrize("size", [0, MAX_KEY_FILE + 1, 1 << 40, 1 << 64])
def test_impossible_sizes_are_refused(size: int, tmp_path: Path) -> None:
    """No bytes, or more than a key file may have, are no part of one, and no memory is taken for them."""
    path = tmp_path / "key"
    path.write_bytes(b"content")
    with pytest.raises(UsageError):
        read(SecretSource(key_file=str(path), keyfile_size=size))


@pytest.mark.parametrize("offset", [1 << 40, 1 << 63, 1 << 70])
def test_impossible_offsets_are_refused(offset: int, tmp_path: Path) -> None:
    """An offset far behind the end is refused, however large the number, and no memory is taken for it."""
    path = tmp_path / "key"
    path.write_bytes(b"content")
    with pytest.raises(LukshdrfsError):
        read(SecretSource(key_file=str(path), keyfile_offset=offset))


def test_a_large_sparse_key_file_can_be_used_in_part(tmp_path: Path) -> None:
    """The offset may lie anywhere in a file or device of any size."""
    path = tmp_path / "key"
    path.write_bytes(b"")
    os.truncate(path, 1 << 42)

    assert read(SecretSource(key_file=str(path), keyfile_offset=(1 << 42) - 4)) == bytes(4)


@pytest.mark.parametrize("offset", [MAX_KEY_FILE - 1, MAX_KEY_FILE + 1, 3 * MAX_KEY_FILE + 12345])
def test_a_pipe_has_its_key_behind_any_offset(offset: int) -> None:
    """What comes before the key in a pipe is read and thrown away, however much it is; the key alone is bounded."""
    receiver, sender = os.pipe()

    def send() -> None:
        with os.fdopen(sender, "wb") as stream:
            for _ in range(offset // 4096):
                stream.write(bytes(4096))
            stream.write(bytes(offset % 4096) + b"the key")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert read(SecretSource(key_file=f"fd:{receiver}", keyfile_offset=offset)) == b"the key"
    finally:
        os.close(receiver)
        thread.join()
    assert read(SecretSource(key_file="/dev/zero", keyfile_offset=offset, keyfile_size=7)) == bytes(7)


def source_named(kind: str, name: str) -> SecretSource:
    """Return a source of which one file is named."""
    fields: dict[str, Any] = {kind: name}
    return SecretSource(**fields)


@pytest.mark.parametrize("kind", ["key_file", "passphrase_file", "volume_key_file"])
def test_what_is_no_file_is_told_by_name(kind: str, tmp_path: Path) -> None:
    """A missing file, a directory and a descriptor that is not open are refused by name."""
    for name in (str(tmp_path / "missing"), str(tmp_path), "fd:9999", "fd:x"):
        with pytest.raises(DeviceError, match=name) as caught:
            read(source_named(kind, name))
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("kind", ["key_file", "passphrase_file", "volume_key_file"])
def test_an_empty_name_is_not_standard_input(kind: str) -> None:
    """An empty name, as of an unset variable in a script, is refused: the secret is not taken from elsewhere."""
    program = f"from lukshdrfs.cli.secrets.source import SecretSource; SecretSource({kind}='').read('')"
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"from standard input\n", capture_output=True, check=False
    )
    assert b"lukshdrfs.errors" in done.stderr


def test_a_slow_pipe_is_read_to_its_end() -> None:
    """A key that comes in pieces is whole."""
    receiver, sender = os.pipe()

    def write() -> None:
        for _ in range(10):
            os.write(sender, b"piece" * 100)
        os.close(sender)

    thread = threading.Thread(target=write)
    thread.start()
    assert read(SecretSource(key_file=f"fd:{receiver}")) == b"piece" * 1000
    thread.join()
    os.close(receiver)


def test_a_given_descriptor_stays_open(tmp_path: Path) -> None:
    """A descriptor that was given is the caller's to close."""
    path = tmp_path / "key"
    path.write_bytes(b"content")
    with path.open("rb") as stream:
        read(SecretSource(key_file=f"fd:{stream.fileno()}"))
        assert os.fstat(stream.fileno()).st_size == 7


def test_a_key_file_needs_little_locked_memory(tmp_path: Path) -> None:
    """A short key file is read without a warning by a user who may lock 64 KiB: no room for 8 MiB is made."""
    path = tmp_path / "key"
    path.write_bytes(b"short")
    program = f"""
import ctypes, logging, resource
logging.basicConfig()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
# without CAP_IPC_LOCK, root is held to the limit too: capset(2), version 3, two empty sets
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
from lukshdrfs.cli.secrets.source import SecretSource
print(len(SecretSource(key_file={str(path)!r}).read("")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert (done.stdout.strip(), done.stderr) == ("5", "")


def test_only_a_terminal_is_interactive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a source that is named nobody is asked; with none, only at a terminal."""
    leader, terminal = os.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(terminal, "r") as tty:
        monkeypatch.setattr(sys, "stdin", tty)
        assert SecretSource().interactive
        assert not SecretSource(key_file="-").interactive
        assert not SecretSource(passphrase_file=str(tmp_path)).interactive
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert not SecretSource().interactive
