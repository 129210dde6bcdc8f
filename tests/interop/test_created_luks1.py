"""LUKS1 headers that `create` makes, as cryptsetup and QEMU see them."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from support import qemu
from support.cryptsetup import LuksFiles, cryptsetup, decrypted, volume_key
from support.model import apply, scattered_writes
from support.mounts import Mounted, lukshdrfs
from support.tools import qemu10

import lukshdrfs as package

pytestmark = pytest.mark.needs("cryptsetup")

SIZE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the header is to say."""

    cipher: str
    key_bits: int
    hash: str

    @property
    def id(self) -> str:
        return f"{self.cipher}-{self.key_bits}-{self.hash}"


KINDS = [
    Kind("aes-xts-plain64", 512, "sha256"),
    Kind("aes-xts-plain64", 256, "sha512"),
    Kind("aes-cbc-essiv:sha256", 256, "sha1"),
    Kind("aes-cbc-plain64", 128, "ripemd160"),
    Kind("serpent-xts-plain64", 512, "whirlpool"),
    Kind("twofish-xts-plain64", 256, "sha256"),
]
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.id))
EACH_AES = pytest.mark.parametrize("kind", KINDS[:4], ids=lambda kind: str(kind.id))
"""Those that cryptsetup opens without the kernel's help."""
OF_QEMU = pytest.mark.parametrize("kind", KINDS[:3], ids=lambda kind: str(kind.id))
"""Those that QEMU has."""


def create(folder: Path, kind: Kind) -> LuksFiles:
    """Make a volume."""
    files = LuksFiles(folder / "payload.img", folder / "header.img", folder / "key")
    files.key_file.write_bytes(b"of the first kind")
    done = lukshdrfs(
        "create", "--type", "luks1", "--cipher", kind.cipher, "--key-size", str(kind.key_bits), "--hash", kind.hash,
        "--pbkdf-force-iterations", "1234", "--header", files.header, "--key-file", files.key_file,
        "--size", str(SIZE), files.payload,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return files


@EACH_KIND
def test_dump_says_what_was_asked_for(kind: Kind, tmp_path: Path) -> None:
    """cryptsetup shows a header of 2 MiB or less with one keyslot, and every field is as it was asked for."""
    files = create(tmp_path, kind)
    dump = cryptsetup("luksDump", files.header).decode()
    fields = dict(re.findall(r"^([A-Z][\w ]*):[ \t]*(\S+)$", dump, re.MULTILINE))

    name, _, mode = kind.cipher.partition("-")
    assert (fields["Version"], fields["Cipher name"], fields["Cipher mode"]) == ("1", name, mode)
    assert (fields["Hash spec"], fields["Payload offset"], fields["MK bits"]) == (kind.hash, "0", str(kind.key_bits))
    assert re.findall(r"Key Slot (\d): (\w+)", dump) == [("0", "ENABLED"), *((str(n), "DISABLED") for n in range(1, 8))]
    assert re.search(
        r"Key Slot 0.*?Iterations:\s*1234\s.*?Key material offset:\s*8\s.*?AF stripes:\s*4000\s", dump, re.DOTALL
    )
    assert files.header.stat().st_size <= 2 << 20
    assert files.header.stat().st_mode & 0o777 == 0o600


@EACH_AES
def test_cryptsetup_reads_what_we_write(kind: Kind, tmp_path: Path) -> None:
    """The passphrase opens it, and what cryptsetup decrypts with that header is what was written."""
    files = create(tmp_path, kind)
    cryptsetup("open", "--test-passphrase", "--key-file", files.key_file, files.header)
    assert len(volume_key(files)) * 8 == kind.key_bits
    plain = random.Random(6).randbytes(SIZE)
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        volume.pwrite(plain, offset=0)

    twin = LuksFiles(files.payload, files.header.with_name("twin.img"), files.key_file)
    shutil.copyfile(files.header, twin.header)
    cryptsetup("convert", "--type", "luks2", twin.header)  # it decrypts files by LUKS2 headers alone
    assert decrypted(twin) == plain


def test_keys_that_cryptsetup_adds_open_it(tmp_path: Path) -> None:
    """cryptsetup adds, changes and kills keyslots in our header, and all of them are where it looks for them."""
    files = create(tmp_path, KINDS[0])
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        volume.pwrite(b"stays", offset=0)
    second = tmp_path / "second"
    for number in range(1, 8):
        second.write_bytes(b"key %d" % number)
        cryptsetup("luksAddKey", "--pbkdf-force-iterations", "1000", "--key-file", files.key_file, files.header, second)
    cryptsetup("luksKillSlot", "--key-file", second, files.header, "0")
    for number in range(1, 8):
        with package.open_volume(files.payload, header=files.header, passphrase=b"key %d" % number) as volume:
            assert volume.pread(5, offset=0) == b"stays"
    with pytest.raises(package.LukshdrfsError):
        package.open_volume(files.payload, header=files.header, passphrase=files.secret)


@OF_QEMU
@pytest.mark.needs("qemu10", "fuse")
def test_qemu_reads_and_writes_it(kind: Kind, tmp_path: Path) -> None:
    """QEMU takes the header beside the payload, reads what we wrote, and we read what it writes."""
    files = create(tmp_path, kind)
    model = bytearray(random.Random(11).randbytes(SIZE))
    with (
        Mounted(files.payload, header=files.header, key_file=files.key_file) as mount,
        mount.image.open("r+b", buffering=0) as image,
    ):
        os.pwrite(image.fileno(), model, 0)
        apply(scattered_writes(random.Random(12), SIZE), model, lambda at, data: os.pwrite(image.fileno(), data, at))

    options = qemu.detached(files.header, files.payload)
    plain = tmp_path / "plain.img"
    qemu.run(
        qemu10("qemu-img"), "convert", *qemu.luks_secret(files.key_file), "--image-opts", options, "-O", "raw", plain
    )
    assert plain.read_bytes() == model
    qemu.run(
        qemu10("qemu-io"), *qemu.luks_secret(files.key_file), "--image-opts", options, "-c", "write -P 0x77 700 9000"
    )
    model[700:9700] = b"\x77" * 9000
    with Mounted(files.payload, "--read-only", header=files.header, key_file=files.key_file) as mount:
        assert mount.image.read_bytes() == model


@pytest.mark.parametrize(
    "options",
    [
        ["--label", "name"],
        ["--subsystem", "name"],
        ["--sector-size", "4096"],
        ["--pbkdf", "argon2id"],
    ],
)
def test_what_luks1_does_not_have(options: list[str], tmp_path: Path) -> None:
    """What only LUKS2 has is refused, and nothing is made."""
    header, payload, key = tmp_path / "header.img", tmp_path / "payload.img", tmp_path / "key"
    key.write_bytes(b"key")
    done = lukshdrfs(
        "create", "--type", "luks1", *options, "--header", header, "--key-file", key, "--size", "1M", payload
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not header.exists()
    assert not payload.exists()
