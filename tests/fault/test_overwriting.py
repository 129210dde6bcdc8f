"""
What is there already, where something is about to be written: named, kept, and never taken from somebody who uses it.

Others are kept out from the first look on, also while a passphrase is asked for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.devices import loop_device
from support.files import digest
from support.foreign import IMAGES, make_ext4, make_gpt, random_file, zero
from support.mounts import LUKSHDRFS, Argument, Mounted, lukshdrfs
from support.terminal import Terminal
from support.tools import program
from support.volumes import MIB

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-keyslots-size", "1M"]
pytestmark = [pytest.mark.needs("cryptsetup", "mkfs.ext4", "blkid")]


def create(files: LuksFiles, *arguments: Argument) -> subprocess.CompletedProcess[str]:
    return lukshdrfs("create", *CHEAP, "--key-file", files.key_file, *arguments)


def blkid(path: Path, offset: int = 0) -> str:
    """Return what libblkid's program calls it."""
    command: list[Argument] = [program("blkid"), "--probe", "--offset", str(offset), path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return str(done.stdout)


@pytest.fixture
def mounted_ext4(volume: LuksFiles) -> Iterator[tuple[Path, str]]:
    """Return a file with a file system that is mounted, and the loop device through which it is."""
    image, place = volume.payload.with_name("ext4.img"), volume.payload.with_name("ext4")
    random_file(image, 8 * MIB)
    make_ext4(image)
    place.mkdir()
    with loop_device(image) as device:
        subprocess.run([program("mount"), "-o", "ro", device, place], check=True)  # so that it changes nothing itself
        try:
            yield image, device
        finally:
            subprocess.run([program("umount"), place], check=True)


@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("kind", IMAGES)
def test_no_volume_is_made_over_an_image(kind: str, volume: LuksFiles) -> None:
    """Neither with a detached header nor with an attached one; the message names what it is."""
    make, word = IMAGES[kind]
    make(volume.payload)
    before, new = digest(volume.payload), volume.payload.with_name("new.hdr")
    attached: list[Argument] = []
    for where in (attached, ["--header", new]):
        done = create(volume, *where, volume.payload)
        assert done.returncode == 4
        assert word in done.stderr
        assert "--force" in done.stderr
    assert digest(volume.payload) == before
    assert not new.exists()


def test_by_force_a_file_system_is_no_longer_recognised(volume: LuksFiles) -> None:
    """It is said that its content stays readable, and nobody takes the volume for what it was."""
    make_ext4(volume.payload)
    new = volume.payload.with_name("new.hdr")
    done = create(volume, "--force", "--header", new, volume.payload)
    assert done.returncode == 0, done.stderr
    assert "ext4" in done.stderr
    assert "readable" in done.stderr
    assert blkid(volume.payload) == ""
    make_ext4(volume.payload)
    before = volume.payload.read_bytes()
    done = create(volume, "--force", "--wipe", "--header", volume.payload.with_name("new2.hdr"), volume.payload)
    assert "overwritten" in done.stderr
    after = volume.payload.read_bytes()
    assert not any(before[at : at + 512] == after[at : at + 512] for at in range(0, len(before), 512))


@pytest.mark.needs("sfdisk")
def test_by_force_both_copies_of_a_partition_table_go(volume: LuksFiles) -> None:
    """The one at the end, too, which alone is a reason to refuse."""
    zero(volume.payload, 0, 4 * MIB)
    make_gpt(volume.payload)
    zero(volume.payload, 0, MIB)
    new = volume.payload.with_name("new.hdr")
    assert "gpt" in create(volume, "--header", new, volume.payload).stderr
    make_gpt(volume.payload)
    assert create(volume, "--force", "--header", new, volume.payload).returncode == 0
    assert b"EFI PART" not in volume.payload.read_bytes()


def test_a_window_is_looked_at_and_nothing_beside_it(volume: LuksFiles) -> None:
    """By force, the signature in the window goes; one that reaches over it is refused as well."""
    random_file(volume.payload, 8 * MIB)
    make_ext4(volume.payload, 4 * MIB)
    window, new = ["--offset", "4M", "--size", "2M"], volume.payload.with_name("new.hdr")
    assert create(volume, "--header", new, *window, volume.payload).returncode == 4
    assert create(volume, "--force", "--header", new, *window, volume.payload).returncode == 0
    assert blkid(volume.payload, 4 * MIB) == ""
    make_ext4(volume.payload)
    done = create(volume, "--header", new.with_name("other.hdr"), "--offset", "2M", "--size", "1M", volume.payload)
    assert done.returncode == 4
    assert "ext4" in done.stderr


def test_a_header_that_is_overwritten_is_kept(volume: LuksFiles) -> None:
    """In a file beside it, or where `--keep` says; it opens what it opened."""
    header = digest(volume.header)
    done = create(volume, "--force", "--header", volume.header, volume.payload)
    assert done.returncode == 0, done.stderr
    kept = volume.header.with_name(f"{volume.header.name}.before")
    assert digest(kept) == header
    assert str(kept) in done.stderr
    attached, copy = volume.payload.with_name("attached"), volume.payload.with_name("kept")
    random_file(attached, 8 * MIB)
    assert create(volume, attached).returncode == 0
    assert create(volume, "--force", "--keep", copy, attached).returncode == 0
    assert lukshdrfs("key", "test", "--header", copy, "--key-file", volume.key_file).returncode == 0


def test_a_header_where_the_new_data_begin_is_kept(volume: LuksFiles) -> None:
    """What is kept is that header, wherever on the payload it is, and not what is at the payload's start."""
    inner, disk, copy = (volume.payload.with_name(name) for name in ("inner", "disk", "kept"))
    random_file(inner, 24 * MIB)
    assert create(volume, inner).returncode == 0
    random_file(disk, 4 * MIB)
    with disk.open("ab") as stream:
        stream.write(inner.read_bytes())
    new = volume.payload.with_name("new.hdr")
    done = create(volume, "--force", "--keep", copy, "--header", new, "--offset", "4M", disk)
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("key", "test", "--header", copy, "--key-file", volume.key_file).returncode == 0


@pytest.mark.root
@pytest.mark.needs("loop", "mount")
def test_what_is_mounted_is_not_written_to_by_force(volume: LuksFiles, mounted_ext4: tuple[Path, str]) -> None:
    """Under whatever name: the device, or the file behind it. Exit status 5."""
    image, device = mounted_ext4
    new = volume.payload.with_name("new.hdr")
    before = digest(image)
    for place in (image, device):
        for done in (
            create(volume, "--force", "--header", place, volume.payload),
            create(volume, "--force", "--header", new, place),
            create(volume, "--force", place),
            lukshdrfs("header", "restore", "--force", "--header", place, volume.header),
            lukshdrfs("header", "repair", "--force", "--header", place),
        ):
            assert done.returncode == 5, done.stderr
            assert "in use" in done.stderr
            assert len(done.stderr.splitlines()) == 1
    assert digest(image) == before


@pytest.mark.needs("fuse")
def test_what_is_mounted_here_is_not_written_to_by_force(volume: LuksFiles) -> None:
    """A payload whose volume somebody uses, as a payload and as a place for a header."""
    other = volume.payload.with_name("other.img")
    random_file(other)
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file):
        for arguments in (
            ["--header", volume.payload.with_name("new.hdr"), volume.payload],
            ["--header", volume.payload, other],
            [volume.payload],
        ):
            done = create(volume, "--force", *arguments)
            assert done.returncode == 5, done.stderr


@pytest.mark.root
@pytest.mark.needs("loop", "setsid")
def test_a_device_is_held_while_somebody_types(volume: LuksFiles) -> None:
    """Nobody can make a file system where a header goes, or mount one, between the look at it and the writing."""
    image = volume.payload.with_name("place.img")
    random_file(image, 8 * MIB)
    with loop_device(image) as device:
        command: list[Argument] = [LUKSHDRFS, "create", *CHEAP, "--no-wipe", "--header", device, volume.payload]
        with Terminal(*command) as terminal:
            terminal.prompt()
            made = subprocess.run([program("mkfs.ext4"), "-q", "-F", device], capture_output=True, check=False)
            assert made.returncode != 0
            for _ in range(2):
                terminal.answer(b"typed passphrase")
            assert terminal.wait() == 0, terminal.shown


@pytest.mark.needs("setsid")
def test_a_file_that_is_written_to_while_somebody_types(volume: LuksFiles) -> None:
    """What came meanwhile stays: exit status 5, and no header."""
    new = volume.payload.with_name("new.hdr")
    with Terminal(LUKSHDRFS, "create", *CHEAP, "--force", "--header", new, volume.payload) as terminal:
        terminal.prompt()
        make_ext4(volume.payload)
        before = digest(volume.payload)
        for _ in range(2):
            terminal.answer(b"typed passphrase")
        assert terminal.wait() == 5, terminal.shown
    assert b"ext4" in terminal.shown
    assert digest(volume.payload) == before
    assert not new.exists()


def test_a_file_that_is_no_header_is_not_replaced(volume: LuksFiles) -> None:
    """One that is larger than any header is somebody's disk, whatever is forced."""
    disk = volume.payload.with_name("disk.img")
    with disk.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)
    done = create(volume, "--force", "--header", disk, volume.payload)
    assert done.returncode == 4
    assert disk.stat().st_size == 1 << 40
