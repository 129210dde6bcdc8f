"""Sectors past 2^32: where the IV `plain` starts again and `plain64` goes on."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from support.cryptsetup import Format, LuksFiles, make_header, volume_key
from support.tools import dmcrypt_vm, require

import lukshdrfs as package

pytestmark = pytest.mark.needs("cryptsetup")

SECTOR = 512
BORDER = SECTOR << 32  # 2 TiB: its sector has the first number that takes more than 32 bits
FORMATS = [
    Format("luks1", "aes-xts-plain", 256),
    Format("luks1", "aes-xts-plain64", 256),
    Format("luks2", "aes-xts-plain64", 512),
    Format("luks2", "aes-xts-plain64", 512, 4096),
]
EACH_FORMAT = pytest.mark.parametrize("layout", FORMATS, ids=lambda layout: str(layout.id))


@pytest.fixture
def files(tmp_path: Path) -> LuksFiles:
    """A sparse payload that ends 1 MiB behind the border."""
    files = LuksFiles(tmp_path / "payload.img", tmp_path / "header.img", tmp_path / "key")
    files.key_file.write_bytes(b"large")
    files.payload.touch()
    try:
        os.truncate(files.payload, BORDER + (1 << 20))
    except OSError as error:
        if error.errno == errno.EFBIG:
            pytest.skip("the file system has no files of 2 TiB: set TMPDIR to one that has")
        raise
    return files


def write_over_border(files: LuksFiles) -> bytes:
    """Write two sectors before the border and two behind it."""
    plain = random.Random(50).randbytes(4 * 4096)
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        volume.pwrite(plain, offset=BORDER - 2 * 4096)
        volume.flush()
    return plain


@EACH_FORMAT
def test_sector_numbers_past_32_bits(layout: Format, files: LuksFiles) -> None:
    """Each sector is encrypted with the number that the cipher's name gives it."""
    make_header(files, layout)
    plain = write_over_border(files)
    key = volume_key(files)
    mask = (1 << 32) - 1 if layout.cipher.endswith("-plain") else (1 << 64) - 1

    expected = b""
    for start in range(0, len(plain), layout.sector_size):
        number = (BORDER - 2 * 4096 + start) // SECTOR & mask
        mode = modes.XTS(number.to_bytes(16, "little"))
        encryptor = Cipher(algorithms.AES(key), mode).encryptor()
        expected += encryptor.update(plain[start : start + layout.sector_size]) + encryptor.finalize()
    with files.payload.open("rb") as payload:
        payload.seek(BORDER - 2 * 4096)
        assert payload.read(len(plain)) == expected


@EACH_FORMAT
def test_kernel_counts_as_we_do(layout: Format, files: LuksFiles) -> None:
    """The kernel reads what was written across the border."""
    require(["dmcrypt-vm"])
    make_header(files, layout)
    plain = write_over_border(files)

    done = subprocess.run(
        [
            dmcrypt_vm(), "open", "--header", files.header, "--payload", files.payload,
            "--key-file", files.key_file,
            "--", f"dd if=$VOL bs=4096 skip={BORDER // 4096 - 2} count=4 2>/dev/null | sha256sum",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == hashlib.sha256(plain).hexdigest()
