"""The lines that `mount` shows on a terminal, typed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.devices import detach
from support.mounts import LUKSHDRFS, Mounted, lukshdrfs
from support.ordinary_user import NUMBER, OrdinaryUser, ordinary_user
from support.terminal import Terminal
from support.tools import program
from support.volumes import MIB, MakeVolume

pytestmark = pytest.mark.needs("fuse", "cryptsetup")


def typed_mount(files: LuksFiles, mountpoint: Path, *words: str) -> list[str]:
    """Mount on a terminal; return the lines that are shown."""
    mountpoint.mkdir(exist_ok=True)
    opening = ("--header", files.header, "--key-file", files.key_file)
    with Terminal(LUKSHDRFS, "mount", *words, *opening, files.payload, mountpoint) as terminal:
        assert terminal.process.wait(60) == 0
        terminal.read()
        return terminal.shown.decode().splitlines()


def run(command: list[str]) -> str:
    """Run a command that has to succeed; return what it says."""
    return subprocess.run([program(command[0]), *command[1:]], check=True, capture_output=True, text=True).stdout


def make(kind: str, image: Path) -> None:
    """Put something on an image: on the file itself, or on a loop device with large sectors."""
    where, _, what = kind.partition(" ")
    disk = str(image)
    if where == "4096":
        disk = run(["losetup", "--find", "--show", "--sector-size", "4096", str(image)]).strip()
    try:
        if what == "ext4":
            run(["mkfs.ext4", "-q", "-E", "nodiscard", disk])
        else:
            subprocess.run(
                [program("sfdisk"), "--quiet", "--no-reread", "--no-tell-kernel", disk],
                input=f"label: {what}\nsize=8M\n".encode(), check=True, capture_output=True,
            )  # fmt: skip
    finally:
        if where == "4096":
            detach(disk)


@pytest.mark.root
@pytest.mark.needs("loop", "mkfs.ext4", "sfdisk")
@pytest.mark.parametrize("kind", ["512 ext4", "4096 ext4", "512 gpt", "4096 gpt", "512 dos", "4096 dos"])
def test_the_loop_device_shows_what_is_there(kind: str, make_volume: MakeVolume, tmp_path: Path) -> None:
    """Whatever was made, in whatever sectors, is found on the loop device of the line that is shown."""
    files = make_volume(size=24 * MIB)
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        make(kind, mount.image)
    mountpoint = tmp_path / "plain"
    shown = typed_mount(files, mountpoint)
    line = next(line for line in shown if "losetup" in line)
    device = run(shlex.split(line)).strip()
    try:
        if "ext4" in kind:
            folder = tmp_path / "files"
            folder.mkdir()
            run(["mount", device, str(folder)])
            (folder / "note").write_text("found")
            run(["umount", str(folder)])
        else:
            table = run(["sfdisk", "--dump", device])
            assert re.search(rf"{device}p?1 : start= *{MIB // int(kind.split(maxsplit=1)[0])},", table)
    finally:
        detach(device)
        assert lukshdrfs("unmount", mountpoint).returncode == 0


@pytest.mark.root
@pytest.mark.needs("loop", "mkfs.ext4")
def test_what_is_made_on_the_file_afterwards_is_found_too(make_volume: MakeVolume, tmp_path: Path) -> None:
    """The line for an empty volume holds after `mkfs` on the image, which knows nothing of the volume's sectors."""
    files = make_volume(size=24 * MIB)
    mountpoint, folder = tmp_path / "plain", tmp_path / "files"
    folder.mkdir()
    line = next(line for line in typed_mount(files, mountpoint) if "losetup" in line)
    make("512 ext4", mountpoint / "image")
    device = run(shlex.split(line)).strip()
    try:
        run(["mount", device, str(folder)])
        run(["umount", str(folder)])
    finally:
        detach(device)
        assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_quiet_is_quiet(volume: LuksFiles, tmp_path: Path) -> None:
    """With `-q` nothing is shown, on a terminal either."""
    assert typed_mount(volume, tmp_path / "plain", "-q") == []
    assert lukshdrfs("unmount", tmp_path / "plain").returncode == 0


def copied(files: LuksFiles, user: OrdinaryUser) -> LuksFiles:
    """Give the user a volume of its own."""
    for path in (files.header, files.payload, files.key_file):
        shutil.copy(path, user.home)
        os.chown(user.home / path.name, NUMBER, NUMBER)
    return LuksFiles(*(user.home / path.name for path in (files.payload, files.header, files.key_file)))


@pytest.mark.root
@pytest.mark.needs("nsenter", "setpriv", "unshare", "mkfs.ext4", "debugfs")
def test_who_is_not_root_can_do_what_is_shown(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Every line but QEMU's is typed by the user, one after the other, and works."""
    with ordinary_user(tmp_path) as user:
        files = copied(make_volume(size=24 * MIB), user)
        user.run("mkdir", "plain")
        opening = ("--header", files.header, "--key-file", files.key_file, files.payload, "plain")
        for expected in ("mkfs.ext4", "debugfs"):
            with Terminal(*user.command(), LUKSHDRFS, "mount", *opening) as terminal:
                assert terminal.process.wait(60) == 0
                terminal.read()
            shown = terminal.shown.decode().splitlines()
            assert not any("losetup" in line for line in shown)
            words = shlex.split(next(line for line in shown if line.startswith(f"  {expected}")))
            also = ["-R", f"write {files.key_file} note"] if expected == "debugfs" else []
            done = user.run(program(words[0]), *words[1:], *also)
            assert done.returncode == 0, done.stderr
            undo = next(line for line in shown if line.startswith("To undo it: ")).split()
            assert user.run(LUKSHDRFS, *undo[4:]).returncode == 0
