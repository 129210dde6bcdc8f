"""A header that cannot be written to: one line says why, and what can be done; no passphrase is asked for in vain."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import LUKSHDRFS, Argument, lukshdrfs
from support.namespaces import LEAVE_FOREIGN_MOUNTS
from support.tools import program

pytestmark = [pytest.mark.root, pytest.mark.needs("cryptsetup")]


def commands(header: Argument, files: LuksFiles) -> list[list[Argument]]:
    secrets: list[Argument] = ["--key-file", files.key_file]
    return [
        ["key", "add", "--header", header, *secrets, "--new-key-file", files.key_file],
        ["key", "remove", "--header", header, "--key-slot", "0", "--force"],
        ["header", "set", "--header", header, "--label", "new"],
    ]


@contextlib.contextmanager
def read_only_device(path: Path) -> Iterator[str]:
    made = subprocess.run(
        [program("losetup"), "--find", "--show", "--read-only", path], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run([program("losetup"), "--detach", device], check=True)


@contextlib.contextmanager
def attribute(letter: str, path: Path) -> Iterator[None]:
    if subprocess.run(["chattr", f"+{letter}", path], capture_output=True, check=False).returncode != 0:
        pytest.skip("the file system has no such attributes")
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{letter}", path], check=True)


def check(header: Argument, files: LuksFiles, *words: str) -> None:
    for command in commands(header, files):
        done = lukshdrfs(*command)
        assert done.returncode == 4, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for word in (str(header), *words):
            assert word in done.stderr


def test_a_read_only_device(volume: LuksFiles) -> None:
    """The kernel opens it for writing and refuses each write: that is seen before anything is done."""
    with read_only_device(volume.header) as device:
        check(device, volume, "read-only device", "blockdev --setrw")


@pytest.mark.needs("chattr")
@pytest.mark.parametrize(("letter", "word"), [("i", "immutable"), ("a", "appended")])
def test_attributes_that_bind_root_too(letter: str, word: str, volume: LuksFiles) -> None:
    """Immutable and append-only files are named as such, with the command that changes it."""
    with attribute(letter, volume.header):
        check(volume.header, volume, word, f"chattr -{letter}")


def test_a_file_system_that_is_mounted_read_only(volume: LuksFiles, tmp_path: Path) -> None:
    """It is the mount that is read-only, and not the file."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    script = f"""{LEAVE_FOREIGN_MOUNTS}
mount --bind {volume.header.parent} {folder} && mount -o remount,bind,ro {folder} || exit 77
exec "$0" "$@"
"""
    here = ["unshare", "--mount", "--propagation=private", "sh", "-c", script]
    for command in commands(folder / volume.header.name, volume):
        done = subprocess.run([*here, LUKSHDRFS, *command], capture_output=True, text=True, check=False)
        if done.returncode == 77:
            pytest.skip(done.stderr)
        assert done.returncode == 4, done.stderr
        assert "remount,rw" in done.stderr
