"""Where there is no LUKS header, the message says what is there instead, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.foreign import image_of, make_ext4, make_swap, random_file, write_at
from support.mounts import Argument, lukshdrfs

pytestmark = [pytest.mark.needs("cryptsetup")]


def message(*arguments: Argument) -> str:
    done = lukshdrfs(*arguments)
    assert done.returncode == 4, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture
def thing(volume: LuksFiles) -> Path:
    """Return a file of random bytes."""
    path = volume.payload.with_name("thing")
    random_file(path)
    return path


def bitlocker(path: Path) -> None:
    write_at(path, 0, b"\xeb\x58\x90-FVE-FS-")


def in_reencryption(path: Path) -> None:
    """Mark a LUKS1 header as cryptsetup does while it reencrypts."""
    write_at(path, 0, b"LUKS\xde\xad\0\1")


@pytest.mark.needs("mkfs.ext4", "mkswap", "qemu-img")
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (make_ext4, "ext4"),
        (make_swap, "swap"),
        (bitlocker, "BitLocker"),
        (in_reencryption, "LUKS1 header in reencryption"),
        (image_of("qcow2"), "--payload-format qcow2"),
        (image_of("vmdk"), "VMDK"),
    ],
    ids=["ext4", "swap", "BitLocker", "LUKS1 in reencryption", "qcow2", "VMDK"],
)
def test_what_is_there_instead_is_named(make: object, word: str, thing: Path, volume: LuksFiles) -> None:
    """By every command that reads a header; nobody is sent for a detached one."""
    assert callable(make)
    make(thing)
    mountpoint = thing.with_name("mnt")
    mountpoint.mkdir()
    opening: list[Argument] = ["--key-file", volume.key_file]
    for command in (
        ["info", thing],
        ["key", "list", thing],
        ["header", "backup", thing, thing.with_name("new")],
        ["mount", *opening, thing, mountpoint],
    ):
        said = message(*command)
        assert word in said
        assert "--header" not in said


def test_a_detached_header_is_asked_for_once(thing: Path) -> None:
    """Of random bytes nothing is known: the header may be elsewhere, unless that is what was named."""
    assert "--header" in message("info", thing)
    assert "--header" not in message("info", "--header", thing)


def test_header_and_payload_the_wrong_way_round(volume: LuksFiles, thing: Path) -> None:
    """It is told which of the two begins with a header."""
    mountpoint = thing.with_name("mnt")
    mountpoint.mkdir()
    options: list[Argument] = ["--header", thing, "--key-file", volume.key_file]
    for command in (["info", *options[:2], volume.header], ["mount", *options, volume.header, mountpoint]):
        said = message(*command)
        assert str(volume.header) in said
        assert "wrong way round" in said
