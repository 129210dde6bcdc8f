"""Where the passphrase comes from, and which of its bytes count: cryptsetup's rules."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, LuksFiles, cryptsetup
from support.mounts import LUKSHDRFS, Argument, Mounted, fusermount, is_mounted, lukshdrfs, read_attribute
from support.processes import wait_gone
from support.terminal import Terminal
from support.tools import program

pytestmark = [pytest.mark.needs("fuse", "cryptsetup")]

TYPED = b"typed passphrase, caf\xc3\xa9"


@pytest.fixture
def typed(volume: LuksFiles) -> LuksFiles:
    """Return a volume whose passphrase can be typed."""
    volume.key_file.write_bytes(TYPED)
    volume.header.unlink()
    cryptsetup(
        "luksFormat",
        *XTS_512.options,
        "--key-file",
        volume.key_file,
        "--header",
        volume.header,
        volume.payload,
    )
    return volume


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mountpoint"
    folder.mkdir()
    yield folder
    if is_mounted(folder):
        fusermount(folder)


def file_with(folder: Path, content: bytes) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    return path


SOURCES: dict[str, tuple[list[str], bytes | None, bytes | None, int]] = {
    # options (FILE: a file with the third), standard input, the file's content, exit code
    "key file": (["--key-file", "FILE"], None, TYPED, 0),
    "key file with a newline": (["--key-file", "FILE"], None, TYPED + b"\n", 2),
    "key file cut": (["--key-file", "FILE", "--keyfile-offset", "3", "--keyfile-size", str(len(TYPED))],
                     None, b"abc" + TYPED + b"\nrest", 0),
    "key file shorter than said": (["--key-file", "FILE", "--keyfile-size", "100"], None, TYPED, 1),
    "key from stdin": (["--key-file", "-"], TYPED, None, 0),
    "key from stdin with a newline": (["--key-file", "-"], TYPED + b"\n", None, 2),
    "line of stdin": ([], TYPED + b"\n", None, 0),
    "line of stdin, no newline": ([], TYPED, None, 0),
    "line of stdin, more lines": ([], TYPED + b"\nsecond\n", None, 0),
    "line of stdin, carriage return": ([], TYPED + b"\r\n", None, 2),
    "line of stdin, nothing": ([], b"", None, 1),
    "line of stdin, an empty one": ([], b"\n", None, 2),
    "key from stdin, nothing": (["--key-file", "-"], b"", None, 1),
    "passphrase from stdin, nothing": (["--passphrase-file", "-"], b"", None, 1),
    "empty key file": (["--key-file", "FILE"], None, b"", 2),
    "empty passphrase file": (["--passphrase-file", "FILE"], None, b"", 2),
    "passphrase file": (["--passphrase-file", "FILE"], None, TYPED + b"\nsecond\n", 0),
    "passphrase file, no newline": (["--passphrase-file", "FILE"], None, TYPED, 0),
    "passphrase from stdin": (["--passphrase-file", "-"], TYPED + b"\n", None, 0),
    "the right slot": (["--key-file", "FILE", "--key-slot", "0"], None, TYPED, 0),
    "another slot": (["--key-file", "FILE", "--key-slot", "1"], None, TYPED, 1),
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_source_of_secret(source: str, typed: LuksFiles, mountpoint: Path, tmp_path: Path) -> None:
    """Every source gives exactly the bytes that cryptsetup would take from it."""
    words, stdin, content, code = SOURCES[source]
    arguments: list[Argument] = [file_with(tmp_path, content or b"") if word == "FILE" else word for word in words]

    done = lukshdrfs("mount", "--header", typed.header, *arguments, typed.payload, mountpoint, stdin=stdin)
    assert done.returncode == code, done.stderr
    assert is_mounted(mountpoint) is (code == 0)
    if code == 0:
        assert lukshdrfs("unmount", mountpoint).returncode == 0


@pytest.mark.parametrize("option", ["--key-file", "--passphrase-file"])
def test_secret_from_descriptor(option: str, typed: LuksFiles, mountpoint: Path) -> None:
    """`fd:N` reads an open descriptor, so that no secret needs a name."""
    reader, writer = os.pipe()
    os.write(writer, TYPED)
    os.close(writer)
    try:
        done = subprocess.run(
            [LUKSHDRFS, "mount", "--header", typed.header, option, f"fd:{reader}", typed.payload, mountpoint],
            pass_fds=[reader], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(reader)
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_header_from_descriptor(typed: LuksFiles, mountpoint: Path) -> None:
    """The header can come through a descriptor too."""
    with typed.header.open("rb") as header:
        done = subprocess.run(
            [
                LUKSHDRFS, "mount", "--header", f"fd:{header.fileno()}", "--key-file", typed.key_file,
                typed.payload, mountpoint,
            ],
            pass_fds=[header.fileno()], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_shell_hands_files_over(typed: LuksFiles, mountpoint: Path) -> None:
    """A shell's `<(command)` is a path of a descriptor that only the caller has: it is read all the same."""
    script = '"$0" mount --header <(cat "$1") --key-file <(cat "$2") "$3" "$4"'
    done = subprocess.run(
        [program("bash"), "-c", script, LUKSHDRFS, typed.header, typed.key_file, typed.payload, mountpoint],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_first_header_that_opens_wins(typed: LuksFiles, volume: LuksFiles, tmp_path: Path) -> None:
    """Headers are tried in the order given: one that is damaged or has another key does not stop the next."""
    broken, other = tmp_path / "broken.img", tmp_path / "other.img"
    broken.write_bytes(os.urandom(1 << 20))
    wrong_key = file_with(tmp_path, b"another key")
    cryptsetup("luksFormat", *XTS_512.options, "--key-file", wrong_key, "--header", other, typed.payload)
    uuid = cryptsetup("luksUUID", typed.header).decode().strip()

    with Mounted(
        typed.payload, "--header", broken, "--header", other, header=typed.header, key_file=typed.key_file
    ) as mount:
        assert read_attribute(mount.image, "uuid") == uuid


def test_passphrase_is_typed_without_echo(typed: LuksFiles, mountpoint: Path) -> None:
    """On a terminal the passphrase is asked for, not shown, and afterwards the terminal echoes again."""
    with Terminal(LUKSHDRFS, "mount", "--header", typed.header, typed.payload, mountpoint) as terminal:
        terminal.answer(TYPED)
        assert terminal.wait() == 0, terminal.shown
        assert TYPED not in terminal.shown
        assert b"Traceback" not in terminal.shown
        assert terminal.echoes
    # the terminal is gone; the mount is not
    pid = int(read_attribute(mountpoint / "image", "pid"))
    assert (mountpoint / "image").read_bytes()
    fusermount(mountpoint)
    wait_gone(pid)


def test_mistyped_passphrase_may_be_tried_again(typed: LuksFiles, mountpoint: Path) -> None:
    """Three attempts unless told: the third, right one mounts."""
    with Terminal(LUKSHDRFS, "mount", "--header", typed.header, typed.payload, mountpoint) as terminal:
        for line in (b"wrong", b"wrong again", TYPED):
            terminal.answer(line)
        assert terminal.wait() == 0, terminal.shown
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_number_of_tries(typed: LuksFiles, mountpoint: Path) -> None:
    """`--tries 1` gives up after one wrong passphrase."""
    options = ["--tries", "1", "--header"]
    with Terminal(LUKSHDRFS, "mount", *options, typed.header, typed.payload, mountpoint) as terminal:
        terminal.answer(b"wrong")
        assert terminal.wait() == 2, terminal.shown
        assert terminal.echoes
    assert not is_mounted(mountpoint)


def test_interrupted_prompt_restores_terminal(typed: LuksFiles, mountpoint: Path) -> None:
    """Control-C at the prompt ends the program without a traceback, and the terminal echoes again."""
    with Terminal(LUKSHDRFS, "mount", "--header", typed.header, typed.payload, mountpoint) as terminal:
        terminal.interrupt()
        assert terminal.wait() != 0
        assert b"Traceback" not in terminal.shown
        assert terminal.echoes
    assert not is_mounted(mountpoint)
