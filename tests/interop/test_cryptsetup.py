"""LUKS2 both ways with cryptsetup, which encrypts and decrypts files itself, without the kernel."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from support.cryptsetup import (
    LUKS2_FORMATS,
    Format,
    LuksFiles,
    cryptsetup,
    decrypted,
    encrypt,
    make_header,
    volume_key,
)
from support.model import apply, scattered_writes
from support.mounts import Mounted, lukshdrfs

import lukshdrfs as package

pytestmark = pytest.mark.needs("cryptsetup")

SIZE = 1 << 20
EACH_FORMAT = pytest.mark.parametrize("layout", LUKS2_FORMATS, ids=lambda layout: str(layout.id))


@pytest.fixture
def files(tmp_path: Path) -> LuksFiles:
    files = LuksFiles(tmp_path / "payload.img", tmp_path / "header.img", tmp_path / "key")
    files.key_file.write_bytes(random.Random(2).randbytes(64))
    files.payload.write_bytes(random.Random(3).randbytes(SIZE))
    return files


@EACH_FORMAT
def test_reads_what_cryptsetup_encrypted(layout: Format, files: LuksFiles) -> None:
    """A file that cryptsetup encrypted in place reads as it was before."""
    plain = files.payload.read_bytes()
    encrypt(files, layout)

    assert files.payload.read_bytes() != plain
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        assert volume.size == SIZE
        assert bytes(volume.pread(SIZE, offset=0)) == plain
        assert bytes(volume.pread(1000, offset=513)) == plain[513:1513]


@EACH_FORMAT
def test_cryptsetup_decrypts_what_volume_wrote(layout: Format, files: LuksFiles) -> None:
    """Writes of any offset and length come out of cryptsetup's decryption, and nothing else has changed."""
    model = bytearray(files.payload.read_bytes())
    encrypt(files, layout)

    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        writes = scattered_writes(random.Random(4), SIZE)
        apply(writes, model, lambda offset, data: volume.pwrite(data, offset=offset))
        volume.flush()
    assert decrypted(files) == bytes(model)


@pytest.mark.needs("fuse")
@EACH_FORMAT
def test_cryptsetup_decrypts_what_mount_wrote(layout: Format, files: LuksFiles) -> None:
    """The same through the mounted image, buffered by the kernel."""
    model = bytearray(files.payload.read_bytes())
    encrypt(files, layout)

    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        assert mount.image.read_bytes() == bytes(model)
        with mount.image.open("r+b", buffering=0) as image:
            writes = scattered_writes(random.Random(5), SIZE)
            apply(writes, model, lambda offset, data: os.pwrite(image.fileno(), data, offset))
    assert decrypted(files) == bytes(model)


CREATED = [
    ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "512"],
    ["--pbkdf", "argon2id", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"],
    ["--pbkdf", "argon2i", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "2",
     "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--sector-size", "512"],
    ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-size", "256", "--sector-size", "2048"],
]  # fmt: skip


@pytest.mark.parametrize("options", CREATED, ids=["pbkdf2-s512", "argon2id", "argon2i-cbc", "pbkdf2-s2048"])
def test_cryptsetup_takes_created_header(options: list[str], files: LuksFiles) -> None:
    """cryptsetup shows, opens and decrypts with a header that `create` made, after we have written to the volume."""
    files.payload.unlink()
    done = lukshdrfs(
        "create",
        *options,
        "--header",
        files.header,
        "--key-file",
        files.key_file,
        "--size",
        "1M",
        files.payload,
    )
    assert done.returncode == 0, done.stderr
    assert files.payload.stat().st_size == SIZE
    assert files.header.stat().st_mode & 0o777 == 0o600
    assert files.payload.stat().st_mode & 0o777 == 0o600

    cryptsetup("luksDump", files.header)
    cryptsetup("open", "--test-passphrase", "--key-file", files.key_file, files.header)
    plain = random.Random(6).randbytes(SIZE)
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        volume.pwrite(plain, offset=0)
        volume.flush()
    assert decrypted(files) == plain


def test_volume_key_of_created_header_is_the_one_in_use(files: LuksFiles) -> None:
    """With the volume key that cryptsetup finds in our header it makes another one, which opens the same data."""
    files.payload.unlink()
    options = CREATED[0]
    done = lukshdrfs(
        "create",
        *options,
        "--header",
        files.header,
        "--key-file",
        files.key_file,
        "--size",
        "1M",
        files.payload,
    )
    assert done.returncode == 0, done.stderr
    plain = random.Random(7).randbytes(SIZE)
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        volume.pwrite(plain, offset=0)
        volume.flush()

    key = files.header.with_suffix(".key")
    key.write_bytes(volume_key(files))
    other = LuksFiles(files.payload, files.header.with_name("other.img"), files.key_file)
    layout = Format("luks2", "aes-xts-plain64", 512)
    cryptsetup(
        "luksFormat", *layout.options, "--volume-key-file", key, "--key-file", other.key_file,
        "--header", other.header, other.payload,
    )  # fmt: skip

    assert decrypted(other) == plain


def test_backup_of_attached_header_opens_payload(files: LuksFiles) -> None:
    """A header backup keeps the data's offset: it opens the attached payload whose own header is gone."""
    layout = LUKS2_FORMATS[0]
    os.truncate(files.payload, 3 << 20)
    cryptsetup("luksFormat", *layout.options, "--offset", "4096", "--key-file", files.key_file, files.payload)
    cryptsetup("luksHeaderBackup", "--header-backup-file", files.header, files.payload)
    plain = random.Random(8).randbytes(4096)
    with package.open_volume(files.payload, passphrase=files.secret) as volume:
        assert volume.size == 1 << 20
        volume.pwrite(plain, offset=777)
        volume.flush()

    with files.payload.open("r+b") as stream:
        stream.write(bytes(2 << 20))
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        assert bytes(volume.pread(4096, offset=777)) == plain


def test_header_of_luks1_twin_opens_same_data(files: LuksFiles) -> None:
    """cryptsetup converts a header to LUKS1; both headers show the same plaintext."""
    plain = files.payload.read_bytes()
    layout = LUKS2_FORMATS[0]
    assert layout.sector_size == 512
    encrypt(files, layout)
    twin = files.header.with_name("twin.img")
    shutil.copyfile(files.header, twin)
    cryptsetup("convert", "--type", "luks1", twin)

    for header in (files.header, twin):
        with package.open_volume(files.payload, header=header, passphrase=files.secret) as volume:
            assert bytes(volume.pread(SIZE, offset=0)) == plain


def test_mistyped_key_leaves_volume_shut(files: LuksFiles) -> None:
    """What cryptsetup would refuse, we refuse."""
    make_header(files, LUKS2_FORMATS[0])

    with pytest.raises(package.LukshdrfsError) as caught:
        package.open_volume(files.payload, header=files.header, passphrase=files.secret[:-1])
    assert caught.value.exit_code == 2
