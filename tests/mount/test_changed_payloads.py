"""A payload that somebody made shorter or longer while it was not mounted: the next mount says so."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import Mounted, lukshdrfs
from support.tools import program
from support.volumes import MIB, MakeVolume

pytestmark = pytest.mark.needs("fuse", "cryptsetup")

SIZE = 24 * MIB


def mounted_with_warnings(files: LuksFiles, *words: str) -> tuple[Path, str]:
    """Mount; return the image and what was said."""
    mountpoint = files.payload.parent / "mnt"
    mountpoint.mkdir(exist_ok=True)
    done = lukshdrfs("mount", *words, "--header", files.header, "--key-file", files.key_file, files.payload, mountpoint)
    assert done.returncode == 0, done.stderr
    return mountpoint / "image", done.stderr


def unmounted(image: Path) -> None:
    """Unmount."""
    assert lukshdrfs("unmount", image.parent).returncode == 0


def make(what: str, image: Path) -> None:
    """Put something on an image that knows how long its disk is."""
    if what == "gpt":
        subprocess.run(
            [program("sfdisk"), "--quiet", image], input=b"label: gpt\nsize=8M\n", check=True, capture_output=True
        )
    else:
        subprocess.run([program(f"mkfs.{what}"), "-q", image], check=True, capture_output=True)


@pytest.mark.needs("mkfs.ext4", "sfdisk")
@pytest.mark.parametrize("what", ["ext4", "gpt"])
def test_a_payload_that_was_cut_off_is_said(what: str, make_volume: MakeVolume) -> None:
    """What is on the volume takes more bytes than there are: a warning has both numbers. Before, there is none."""
    files = make_volume(size=SIZE)
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        make(what, mount.image)
    image, said = mounted_with_warnings(files)
    unmounted(image)
    assert said == ""
    os.truncate(files.payload, SIZE - MIB)
    for words in ([], ["-r"]):
        image, said = mounted_with_warnings(files, *words)
        unmounted(image)
        assert said.count("\n") == 1
        assert f"payload {files.payload} is too short" in said
        assert f"takes {SIZE} bytes, and the volume has {SIZE - MIB}" in said


def test_a_payload_that_was_made_longer_is_said(volume: LuksFiles) -> None:
    """The new part is a hole: the command that is named fills it with zeros, and then there is nothing to say."""
    volume.payload.write_bytes(os.urandom(4 * MIB))
    os.truncate(volume.payload, 7 * MIB)
    image, said = mounted_with_warnings(volume)
    try:
        assert said.count("\n") == 1
        assert f"its last {3 * MIB} bytes have never been written" in said
        (command,) = re.findall(r"dd if=.*?fsync", said)
        assert any(image.read_bytes()[4 * MIB :]), "a hole reads as anything"
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        assert image.read_bytes()[4 * MIB :] == bytes(3 * MIB)
    finally:
        unmounted(image)
    image, said = mounted_with_warnings(volume)
    unmounted(image)
    assert said == ""


def test_a_sparse_payload_is_no_surprise(make_volume: MakeVolume) -> None:
    """One that was never filled has holes elsewhere, too, or nothing but a beginning: it is as it was made."""
    for place in (0, MIB):
        files = make_volume(size=SIZE)
        with (
            Mounted(files.payload, header=files.header, key_file=files.key_file) as mount,
            mount.image.open("r+b", buffering=0) as stream,
        ):
            os.pwrite(stream.fileno(), b"x" * 4096, place)
        image, said = mounted_with_warnings(files)
        unmounted(image)
        assert said == ""
