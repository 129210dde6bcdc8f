"""Both ways with the kernel's dm-crypt, which runs in a guest where this machine's kernel has none."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LUKS1_FORMATS, LUKS2_FORMATS, Format, LuksFiles, make_header
from support.model import apply, scattered_writes
from support.mounts import Mounted
from support.tools import dmcrypt_vm

import lukshdrfs as package

pytestmark = [pytest.mark.needs("cryptsetup", "fuse", "dmcrypt-vm"), pytest.mark.root]

SIZE = 1 << 20


@pytest.mark.parametrize("layout", [*LUKS1_FORMATS, *LUKS2_FORMATS], ids=lambda layout: str(layout.id))
def test_kernel_and_mount_read_each_other(layout: Format, tmp_path: Path) -> None:
    """The kernel reads what was written through the mount, and the mount reads what the kernel wrote."""
    files = LuksFiles(tmp_path / "payload.img", tmp_path / "header.img", tmp_path / "key")
    files.key_file.write_bytes(b"of the\nkernel")
    files.payload.write_bytes(bytes(SIZE))
    make_header(files, layout)
    rng = random.Random(9)
    ours, theirs = bytearray(rng.randbytes(SIZE)), rng.randbytes(SIZE)

    with (
        Mounted(files.payload, header=files.header, key_file=files.key_file) as mount,
        mount.image.open("r+b", buffering=0) as image,
    ):
        os.pwrite(image.fileno(), ours, 0)
        apply(scattered_writes(rng, SIZE), ours, lambda offset, data: os.pwrite(image.fileno(), data, offset))

    share = tmp_path / "share"
    share.mkdir()
    (share / "theirs").write_bytes(theirs)
    done = subprocess.run(
        [
            dmcrypt_vm(), "open", "--header", files.header, "--payload", files.payload,
            "--key-file", files.key_file, "--share-dir", share,
            "--", "sha256sum <$VOL && dd if=/share/theirs of=$VOL bs=64k conv=fsync 2>/dev/null",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == hashlib.sha256(ours).hexdigest()

    with Mounted(files.payload, "--read-only", header=files.header, key_file=files.key_file) as mount:
        assert mount.image.read_bytes() == theirs


def test_options_that_the_iv_ignores(tmp_path: Path) -> None:
    """What follows an IV other than essiv means nothing to the kernel, and nothing to us: the data are the same."""
    files = LuksFiles(tmp_path / "payload.img", tmp_path / "header.img", tmp_path / "key")
    files.key_file.write_bytes(b"of the kernel")
    plain = random.Random(10).randbytes(SIZE)
    files.payload.write_bytes(bytes(SIZE))
    make_header(files, LUKS1_FORMATS[0])
    with files.header.open("r+b") as stream:
        stream.seek(40)
        stream.write(b"xts-plain64:sha256")
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        volume.pwrite(plain, offset=0)
        volume.flush()
    done = subprocess.run(
        [
            dmcrypt_vm(), "open", "--header", files.header, "--payload", files.payload, "--key-file", files.key_file,
            "--", "sha256sum <$VOL",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == hashlib.sha256(plain).hexdigest()
