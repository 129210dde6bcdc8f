"""A payload that is plainly something else is no volume: it is not written to and, if it is an image, not read."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles, cryptsetup
from support.files import digest
from support.foreign import ARCHIVES, IMAGES, Make, make_ext4, make_gpt, make_swap, random_file, write_at, zero
from support.mounts import LUKSHDRFS, Argument, is_mounted, lukshdrfs
from support.terminal import Terminal
from support.volumes import MIB

from lukshdrfs import open_volume
from lukshdrfs.errors import DeviceError

pytestmark = [pytest.mark.needs("fuse", "cryptsetup")]

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


def make_luks(path: Path) -> None:
    """Make another volume, with its own header."""
    key = path.with_name("other-key")
    key.write_bytes(b"other")
    cryptsetup("luksFormat", "--type", "luks2", *CHEAP, "--luks2-keyslots-size", "256k", "--key-file", key, path)


CONTENT: dict[str, tuple[Make, str]] = {
    "a file system": (make_ext4, "ext4"),
    "swap": (make_swap, "swap"),
    "a partition table": (make_gpt, "gpt"),
    "another volume": (make_luks, "crypto_LUKS"),
    "a document": (lambda path: write_at(path, 0, b"%PDF-1.7\n"), "PDF"),
}
"""What writes itself over a payload, and what it is called."""


def opening(files: LuksFiles) -> list[Argument]:
    return ["--header", files.header, "--key-file", files.key_file]


def refused(files: LuksFiles, *options: Argument) -> str:
    """Try to mount; nothing comes of it, nothing is changed, and the reason is one line."""
    mountpoint, before = files.payload.with_name("mnt"), digest(files.payload)
    mountpoint.mkdir(exist_ok=True)
    done = lukshdrfs("mount", *opening(files), *options, files.payload, mountpoint)
    assert done.returncode == 4, done.stderr
    assert not is_mounted(mountpoint)
    assert digest(files.payload) == before
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(files.payload) in done.stderr
    return done.stderr


def passed(files: LuksFiles, *options: Argument) -> str:
    """Mount, and unmount again; return what was said, which is one line."""
    mountpoint = files.payload.with_name("mnt")
    mountpoint.mkdir(exist_ok=True)
    done = lukshdrfs("mount", *opening(files), *options, files.payload, mountpoint)
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", mountpoint).returncode == 0
    return done.stderr


@pytest.mark.needs("mkfs.ext4", "mkswap", "sfdisk")
@pytest.mark.parametrize("what", CONTENT)
def test_what_is_no_ciphertext_is_not_written_to(what: str, volume: LuksFiles) -> None:
    """With what was seen, and the ways past: reading only, or by force. Each says what it passes over."""
    make, name = CONTENT[what]
    make(volume.payload)
    message = refused(volume)
    assert name in message
    assert "--force" in message
    assert "--read-only" in message
    for way in (["--read-only"], ["-o", "ro"], ["--force"], ["-o", "force"]):
        assert name in passed(volume, *way)


@pytest.mark.needs("mkfs.ext4")
def test_the_place_of_the_data_is_looked_at(volume: LuksFiles) -> None:
    """Where they begin, at whatever offset; and what begins at the payload's start and reaches over them."""
    random_file(volume.payload, 4 * MIB)
    make_ext4(volume.payload, MIB)
    assert passed(volume, "--offset", "2M") == ""
    assert "ext4" in refused(volume, "--offset", "1M")
    assert "ext4" in refused(volume, "--offset", "1M", "--size", "1M")
    random_file(volume.payload, 4 * MIB)
    make_ext4(volume.payload)
    assert "ext4" in refused(volume, "--offset", "2M")


@pytest.mark.needs("sfdisk")
def test_a_partition_is_a_place_for_a_volume(volume: LuksFiles) -> None:
    """The table before it is not in the way, nor is the copy at the end of what was the disk's table before."""
    random_file(volume.payload, 4 * MIB)
    zero(volume.payload, 0, MIB)
    make_gpt(volume.payload)
    assert passed(volume, "--offset", "1M", "--size", "1M") == ""
    random_file(volume.payload.with_name("random"), 3 * MIB)
    write_at(volume.payload, 0, volume.payload.with_name("random").read_bytes())
    assert passed(volume) == ""


def test_the_header_before_the_data_may_be_its_own(volume: LuksFiles) -> None:
    """A copy of an attached header is the volume's; one of another volume is not."""
    attached = volume.payload.with_name("attached")
    random_file(attached, 4 * MIB)
    options = ["--type", "luks2", *CHEAP, "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "1m", "-q"]
    cryptsetup("luksFormat", *options, "--offset", "4096", "--key-file", volume.key_file, attached)
    copy = volume.payload.with_name("copy")
    assert lukshdrfs("header", "export", attached, copy).returncode == 0
    own = LuksFiles(attached, copy, volume.key_file)
    assert passed(own) == ""
    write_at(attached, 168, b"11111111-2222-3333-4444-555555555555")
    assert "LUKS" in refused(own)


@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_not_raw_unless_that_is_said(kind: str, volume: LuksFiles) -> None:
    """Not even for reading: it would be nonsense. The message names it, and what opens it."""
    make, word = IMAGES[kind]
    make(volume.payload)
    for options in ([], ["--read-only"]):
        message = refused(volume, *options)
        assert word in message
        assert "--payload-format" in message
    if volume.payload.stat().st_size >= MIB:
        for way in (["--payload-format", "raw"], ["-o", "format=raw"], ["--force"]):
            assert word in passed(volume, *way)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_is_not_raw_either(kind: str, volume: LuksFiles) -> None:
    """It has to be unpacked first, and the message says so."""
    make, word = ARCHIVES[kind]
    make(volume.payload)
    message = refused(volume)
    assert word in message
    assert "unpack" in message


@pytest.mark.needs("mkfs.ext4")
def test_the_python_interface_is_as_careful(volume: LuksFiles) -> None:
    """`open_volume` refuses the same, unless it is for reading or by force."""
    make_ext4(volume.payload)
    key = volume.key_file.read_bytes()
    with pytest.raises(DeviceError, match="ext4"):
        open_volume(volume.payload, header=volume.header, passphrase=key)
    open_volume(volume.payload, header=volume.header, passphrase=key, read_only=True).close()
    open_volume(volume.payload, header=volume.header, passphrase=key, force=True).close()


@pytest.mark.needs("mkfs.ext4", "setsid")
def test_it_is_looked_at_again_after_the_passphrase(volume: LuksFiles) -> None:
    """What somebody has made there while another was asked is not written to."""
    typed, mountpoint = volume.payload.with_name("typed"), volume.payload.with_name("mnt")
    typed.write_bytes(b"typed passphrase")
    assert lukshdrfs("key", "add", *CHEAP, *opening(volume), "--new-key-file", typed).returncode == 0
    mountpoint.mkdir()
    with Terminal(LUKSHDRFS, "mount", "--header", volume.header, volume.payload, mountpoint) as terminal:
        terminal.prompt()
        make_ext4(volume.payload)
        terminal.answer(typed.read_bytes())
        assert terminal.wait() == 4, terminal.shown
    assert b"ext4" in terminal.shown
    assert not is_mounted(mountpoint)
