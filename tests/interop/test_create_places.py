"""Where `create` puts headers, data and key material: cryptsetup, QEMU and dm-crypt find them there."""

from __future__ import annotations

import hashlib
import os
import random
import re
from pathlib import Path

import pytest
from support import qemu
from support.created import COSTS, SECRETS, SMALL, create
from support.cryptsetup import LuksFiles, cryptsetup, dump, json_metadata, keyslot_of
from support.devices import loop_device
from support.dmcrypt import run_in_guest
from support.mounts import Argument
from support.tools import program

import lukshdrfs as package

pytestmark = pytest.mark.needs("cryptsetup")

MIB = 1 << 20
CHEAP = COSTS["pbkdf2"]


@pytest.fixture
def files(tmp_path: Path) -> LuksFiles:
    """The names of a volume's files; only the key is there."""
    return names(tmp_path)


def names(folder: Path) -> LuksFiles:
    files = LuksFiles(folder / "payload.img", folder / "header.img", folder / "key")
    files.key_file.write_bytes(SECRETS[0])
    return files


def make(files: LuksFiles, *options: Argument, size: int = 3 * MIB, attached: bool = False) -> None:
    """Make a volume with one key."""
    where: list[Argument] = [] if attached else ["--header", files.header]
    create(
        *options, *CHEAP, *where, "--key-file", files.key_file, "--size", str(size), "--no-wipe", files.payload
    )  # fmt: skip


def fill(files: LuksFiles, *, attached: bool = False) -> bytes:
    """Write random data all over a volume and return them."""
    header = None if attached else files.header
    with package.open_volume(files.payload, header=header, passphrase=files.secret) as volume:
        plain = random.Random(volume.size).randbytes(volume.size)
        volume.pwrite(plain, offset=0)
        volume.flush()
    return plain


def test_attached_luks2_is_as_cryptsetup_makes_it(files: LuksFiles) -> None:
    """Without any size, areas and data are where they are in a volume that cryptsetup makes."""
    twin = files.payload.with_name("twin.img")
    make(files, "--sector-size", "512", size=18 * MIB, attached=True)
    with twin.open("wb") as stream:
        os.truncate(stream.fileno(), 18 * MIB)
    cryptsetup(
        "luksFormat", "--sector-size", "512", "--cipher", "aes-xts-plain64", "--key-size", "512", *CHEAP,
        "--key-file", files.key_file, twin,
    )  # fmt: skip

    ours, theirs = json_metadata(files.payload), json_metadata(twin)
    for metadata in (ours, theirs):
        for secret in ("salt", "digest", "iterations"):  # iterations: cryptsetup measures those of the digest
            del metadata["digests"]["0"][secret]
        del metadata["keyslots"]["0"]["kdf"]["salt"]
    assert ours == theirs
    assert keyslot_of(files.payload, files.key_file) == 0


@pytest.mark.needs("qemu-img")
def test_attached_luks1_is_qemus_too(files: LuksFiles, tmp_path: Path) -> None:
    """An attached LUKS1 volume is an image that QEMU reads and cryptsetup opens."""
    make(files, "--type", "luks1", size=3 * MIB, attached=True)
    plain = fill(files, attached=True)
    assert re.search(r"Payload offset:\s*4096$", dump(files.payload), re.MULTILINE)
    assert keyslot_of(files.payload, files.key_file) == 0
    assert len(plain) == MIB
    read = tmp_path / "plain.img"
    qemu.run(
        program("qemu-img"), "convert", *qemu.luks_secret(files.key_file), "--image-opts", qemu.attached(files.payload),
        "-O", "raw", read,
    )  # fmt: skip
    assert read.read_bytes() == plain


@pytest.mark.parametrize(
    ("metadata_size", "keyslots_size", "room"),
    [("16K", "252K", 1), ("32K", "512K", 2), ("128K", "1M", 4), ("4M", "2M", 8)],
)
def test_sizes_of_metadata_and_keyslots(metadata_size: str, keyslots_size: str, room: int, files: LuksFiles) -> None:
    """cryptsetup sees the sizes that were asked for, and can fill the keyslots area to the last one."""
    make(files, "--luks2-metadata-size", metadata_size, "--luks2-keyslots-size", keyslots_size)
    units = {"K": 1 << 10, "M": 1 << 20}
    metadata, keyslots = (int(text[:-1]) * units[text[-1]] for text in (metadata_size, keyslots_size))
    text = dump(files.header)
    assert re.search(rf"Metadata area:\s*{metadata} \[bytes\]", text)
    assert re.search(rf"Keyslots area:\s*{keyslots} \[bytes\]", text)
    assert files.header.stat().st_size == 2 * metadata + keyslots

    for number in range(1, room):
        cryptsetup("luksAddKey", *CHEAP, "--key-file", files.key_file, files.header, files.key_file)
        assert keyslot_of(files.header, files.key_file, "--key-slot", f"{number}") == number
    with pytest.raises(AssertionError, match="luksAddKey"):
        cryptsetup("luksAddKey", *CHEAP, "--key-file", files.key_file, files.header, files.key_file)


def test_keyslot_cipher(files: LuksFiles) -> None:
    """Keyslots can have a cipher of their own; cryptsetup opens them whatever the data's is."""
    make(
        files, *SMALL, "--cipher", "serpent-xts-plain64", "--key-size", "512",
        "--keyslot-cipher", "aes-cbc-essiv:sha256", "--keyslot-key-size", "256",
    )  # fmt: skip
    metadata = json_metadata(files.header)
    area = metadata["keyslots"]["0"]["area"]
    assert (area["encryption"], area["key_size"]) == ("aes-cbc-essiv:sha256", 32)
    assert metadata["segments"]["0"]["encryption"] == "serpent-xts-plain64"
    assert metadata["keyslots"]["0"]["key_size"] == 64
    assert keyslot_of(files.header, files.key_file) == 0


def test_names(files: LuksFiles) -> None:
    """cryptsetup shows label, subsystem and UUID as they were given."""
    uuid = "0b1d6d2e-5d4a-4a2f-9d0a-31a3a5b5c0de"
    make(files, *SMALL, "--label", "büro 2", "--subsystem", "x=y", "--uuid", uuid)
    text = dump(files.header)
    for name, value in (("Label", "büro 2"), ("Subsystem", "x=y"), ("UUID", uuid)):
        assert re.search(rf"^{name}:\s*{value}$", text, re.MULTILINE)
    assert cryptsetup("luksUUID", files.header).decode().strip() == uuid


@pytest.mark.root
@pytest.mark.needs("loop")
@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_header_on_block_device(kind: str, files: LuksFiles) -> None:
    """A header on a device is a header to cryptsetup, and the rest of the device stays as it was."""
    rest = random.Random(1).randbytes(MIB)
    size = 2 * MIB if kind == "luks1" else MIB + (32 << 10)
    files.header.write_bytes(bytes(size) + rest)
    options = [] if kind == "luks1" else SMALL
    with loop_device(files.header) as device:
        on_device = LuksFiles(files.payload, Path(device), files.key_file)
        make(on_device, "--type", kind, *options)
        plain = fill(on_device)
        assert keyslot_of(Path(device), files.key_file) == 0
        assert cryptsetup("luksUUID", device) == cryptsetup("luksUUID", files.header)
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        assert bytes(volume.pread(len(plain), offset=0)) == plain
    assert files.header.read_bytes()[-MIB:] == rest


PLACES: dict[str, list[str]] = {
    "attached-luks1": ["--type", "luks1"],
    "attached-luks2": SMALL,
    "attached-luks2-offset": [*SMALL, "--offset", "2560K", "--sector-size", "2048"],
    "attached-luks1-offset": ["--type", "luks1", "--offset", str(2 * MIB + 512)],
    "detached-luks2-offset": [*SMALL, "--offset", str(2 * MIB), "--sector-size", "4096"],
    "detached-luks1-offset": ["--type", "luks1", "--offset", "2M"],
    "detached-keyslot-cipher": [*SMALL, "--cipher", "twofish-xts-plain64", "--keyslot-cipher", "aes-xts-plain64"],
}


@pytest.mark.root
@pytest.mark.needs("dmcrypt-vm")
def test_kernel_finds_data_and_leaves_the_rest(tmp_path: Path) -> None:
    """The kernel reads what we wrote where the header says the data are, and we read what it writes there."""
    plain = {}
    for place, options in PLACES.items():
        (tmp_path / place).mkdir()
        files, attached = names(tmp_path / place), place.startswith("attached")
        make(files, *options, attached=attached)
        plain[place] = fill(files, attached=attached)
    run_in_guest(
        tmp_path,
        """
        for folder in *ached*; do
            cd $folder
            header=
            if [ -e header.img ]; then header="--header header.img"; fi
            cryptsetup open $header --key-file key payload.img vol
            sha256sum </dev/mapper/vol >sum
            dd if=/dev/zero of=/dev/mapper/vol bs=4096 count=2 conv=fsync 2>errors
            cryptsetup close vol
            cd ..
        done
        """,
    )
    for place, written in plain.items():
        folder = tmp_path / place
        assert (folder / "sum").read_text().split()[0] == hashlib.sha256(written).hexdigest(), place
        header = None if place.startswith("attached") else folder / "header.img"
        with package.open_volume(folder / "payload.img", header=header, passphrase=SECRETS[0]) as volume:
            assert bytes(volume.pread(len(written), offset=0)) == bytes(8192) + written[8192:], place
