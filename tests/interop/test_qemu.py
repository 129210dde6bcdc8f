"""LUKS1 both ways with QEMU, and the locks that keep both from opening one payload for writing."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from support import qemu
from support.cryptsetup import LuksFiles
from support.model import apply, scattered_writes
from support.mounts import Mounted, fuse_mounts, lukshdrfs
from support.tools import program, qemu10

import lukshdrfs as package

pytestmark = pytest.mark.needs("qemu-img", "qemu-io")

SIZE = 1 << 20
CIPHERS = {
    "xts": "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64",
    "xts-128": "cipher-alg=aes-128,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha1",
    "cbc-essiv": "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
}


@pytest.fixture(scope="module", params=CIPHERS)
def made_by_qemu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LuksFiles:
    """An image that QEMU made, its header inside, with random plaintext."""
    folder = tmp_path_factory.mktemp("qemu")
    files = LuksFiles(folder / "payload.img", folder / "header.img", folder / "key")
    files.key_file.write_bytes(b"QEMU takes text only")
    plain = folder / "plain.img"
    plain.write_bytes(random.Random(10).randbytes(SIZE))
    options = f"key-secret=s,iter-time=10,{CIPHERS[request.param]}"
    qemu.run_timed(
        program("qemu-img"), "create", "-q", "-f", "luks", *qemu.luks_secret(files.key_file),
        "-o", options, files.payload, str(SIZE),
    )  # fmt: skip
    qemu.run(
        program("qemu-img"), "convert", "-n", *qemu.luks_secret(files.key_file), "-f", "raw", plain,
        "--target-image-opts", qemu.attached(files.payload),
    )  # fmt: skip
    return files


@pytest.fixture
def files(made_by_qemu: LuksFiles, tmp_path: Path) -> LuksFiles:
    """A copy of it, to work on."""
    shutil.copytree(made_by_qemu.payload.parent, tmp_path, dirs_exist_ok=True)
    return LuksFiles(tmp_path / "payload.img", tmp_path / "header.img", tmp_path / "key")


def qemu_plaintext(files: LuksFiles, image: str, tool: str | None = None) -> bytes:
    """Return the plaintext as QEMU reads it."""
    target = files.payload.with_suffix(".plain")
    qemu.run(
        tool or program("qemu-img"), "convert", *qemu.luks_secret(files.key_file), "--image-opts", image,
        "-O", "raw", target,
    )  # fmt: skip
    return target.read_bytes()


def cut_header_off(files: LuksFiles) -> None:
    """Move the header into a file of its own, and put zeros where it was. The data stay at their offset."""
    done = lukshdrfs("info", "--json", files.payload)
    assert done.returncode == 0, done.stderr
    offset = json.loads(done.stdout)["payload_offset"]
    with files.payload.open("r+b") as stream:
        files.header.write_bytes(stream.read(offset))
        stream.seek(0)
        stream.write(bytes(offset))


def put_header_back(files: LuksFiles) -> None:
    """Undo `cut_header_off`."""
    with files.payload.open("r+b") as stream:
        stream.write(files.header.read_bytes())


def test_reads_and_writes_attached_image(files: LuksFiles) -> None:
    """We read what QEMU wrote into an image of its own, and QEMU reads what we wrote."""
    model = bytearray((files.payload.parent / "plain.img").read_bytes())

    with package.open_volume(files.payload, passphrase=files.secret) as volume:
        assert bytes(volume.pread(SIZE, offset=0)) == bytes(model)
        writes = scattered_writes(random.Random(11), SIZE)
        apply(writes, model, lambda offset, data: volume.pwrite(data, offset=offset))
        volume.flush()
    assert qemu_plaintext(files, qemu.attached(files.payload)) == bytes(model)


def test_options_that_the_iv_ignores(files: LuksFiles, tmp_path: Path) -> None:
    """A hash behind an IV that needs none is ignored by QEMU, and by us; a keyslot that we add opens in QEMU."""
    with files.payload.open("r+b") as stream:
        stream.seek(40)
        mode = stream.read(32).rstrip(b"\0")
        stream.seek(40)
        stream.write(mode if b"essiv" in mode else mode + b":sha256")
    model = (files.payload.parent / "plain.img").read_bytes()
    assert qemu_plaintext(files, qemu.attached(files.payload)) == model
    with package.open_volume(files.payload, passphrase=files.secret) as volume:
        assert bytes(volume.pread(SIZE, offset=0)) == model
    second = tmp_path / "second"
    second.write_bytes(b"another one")
    added = lukshdrfs(
        "key", "add", "--pbkdf-force-iterations", "1000", "--key-file", files.key_file, "--new-key-file", second,
        files.payload,
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    assert qemu_plaintext(dataclasses.replace(files, key_file=second), qemu.attached(files.payload)) == model


@pytest.mark.needs("fuse")
def test_mounts_with_header_cut_off(files: LuksFiles) -> None:
    """With the header in a file of its own the mount reads QEMU's data, and QEMU ours when the header is back."""
    model = bytearray((files.payload.parent / "plain.img").read_bytes())
    cut_header_off(files)

    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        assert mount.image.read_bytes() == bytes(model)
        with mount.image.open("r+b", buffering=0) as image:
            writes = scattered_writes(random.Random(12), SIZE)
            apply(writes, model, lambda offset, data: os.pwrite(image.fileno(), data, offset))
    put_header_back(files)
    assert qemu_plaintext(files, qemu.attached(files.payload)) == bytes(model)


def test_reads_what_qemu_io_wrote(files: LuksFiles) -> None:
    """Sectors that qemu-io fills with a pattern read as that pattern."""
    qemu.run(
        program("qemu-io"), *qemu.luks_secret(files.key_file), "--image-opts", qemu.attached(files.payload),
        "-c", "write -P 0x5a 1000 3000", "-c", "write -P 0xa5 512k 64k",
    )  # fmt: skip

    with package.open_volume(files.payload, passphrase=files.secret) as volume:
        assert bytes(volume.pread(3000, offset=1000)) == b"\x5a" * 3000
        assert bytes(volume.pread(64 << 10, offset=512 << 10)) == b"\xa5" * (64 << 10)


@pytest.mark.needs("qemu10", "fuse")
def test_shares_detached_header_with_qemu(files: LuksFiles, tmp_path: Path) -> None:
    """QEMU opens our payload with the header beside it, and reads and writes what we read and write."""
    model = bytearray((tmp_path / "plain.img").read_bytes())
    cut_header_off(files)
    image = qemu.detached(files.header, files.payload)

    with (
        Mounted(files.payload, header=files.header, key_file=files.key_file) as mount,
        mount.image.open("r+b", buffering=0) as stream,
    ):
        writes = scattered_writes(random.Random(13), SIZE)
        apply(writes, model, lambda offset, data: os.pwrite(stream.fileno(), data, offset))
    assert qemu_plaintext(files, image, qemu10("qemu-img")) == bytes(model)

    qemu.run(
        qemu10("qemu-io"), *qemu.luks_secret(files.key_file), "--image-opts", image,
        "-c", "write -P 0x77 700 9000",
    )  # fmt: skip
    model[700:9700] = b"\x77" * 9000
    with Mounted(files.payload, "--read-only", header=files.header, key_file=files.key_file) as mount:
        assert mount.image.read_bytes() == bytes(model)


@pytest.mark.needs("qemu10", "fuse")
def test_detached_header_made_by_qemu(tmp_path: Path) -> None:
    """A header that QEMU made on its own, for a payload elsewhere, opens in both programs."""
    files = LuksFiles(tmp_path / "payload.img", tmp_path / "header.img", tmp_path / "key")
    files.key_file.write_bytes(b"QEMU takes text only")
    for path in (files.header, files.payload):
        path.touch()
    os.truncate(files.payload, SIZE)
    create = {
        "job-id": "create",
        "options": {
            "driver": "luks", "header": "header", "file": "payload", "size": SIZE,
            "key-secret": "s", "iter-time": 10,
        },
    }  # fmt: skip
    with subprocess.Popen(
        [
            qemu10("qemu-storage-daemon"), *qemu.luks_secret(files.key_file),
            "--blockdev", f"driver=file,node-name=header,filename={files.header}",
            "--blockdev", f"driver=file,node-name=payload,filename={files.payload}",
            "--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as daemon:  # fmt: skip
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        for command in (
            {"execute": "qmp_capabilities"},
            {"execute": "blockdev-create", "arguments": create},
        ):
            daemon.stdin.write(json.dumps(command) + "\n")
        daemon.stdin.flush()
        jobs = (json.loads(line).get("data", {}).get("status") for line in daemon.stdout)
        assert "concluded" in jobs
        daemon.stdin.write(json.dumps({"execute": "quit"}) + "\n")
        daemon.stdin.flush()
        daemon.wait(20)
    os.truncate(files.payload, SIZE)  # QEMU leaves the payload's size to its owner
    plain = random.Random(14).randbytes(SIZE)

    with (
        Mounted(files.payload, header=files.header, key_file=files.key_file) as mount,
        mount.image.open("r+b", buffering=0) as image,
    ):
        assert os.pwrite(image.fileno(), plain, 0) == SIZE
    image_options = qemu.detached(files.header, files.payload)
    assert qemu_plaintext(files, image_options, qemu10("qemu-img")) == plain


# --- locks ------------------------------------------------------------------------------------------------------


@pytest.mark.needs("fuse")
def test_qemu_refuses_what_is_mounted(mounted: Mounted) -> None:
    """While the payload is mounted for writing, QEMU cannot open it for writing too."""
    before = mounted.payload.read_bytes()

    done = subprocess.run(
        [program("qemu-io"), "-f", "raw", "-c", "write -P 1 0 4096", mounted.payload],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "lock" in done.stderr
    assert mounted.payload.read_bytes() == before


@pytest.mark.needs("fuse")
def test_qemu_may_read_what_is_mounted_read_only(volume: LuksFiles) -> None:
    """Readers share a payload; a writer is refused by them."""
    with Mounted(volume.payload, "--read-only", header=volume.header, key_file=volume.key_file):
        qemu.run(program("qemu-io"), "-r", "-f", "raw", "-c", "read 0 4096", volume.payload)
        done = subprocess.run(
            [program("qemu-io"), "-f", "raw", "-c", "write 0 4096", volume.payload],
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("mode", [[], ["--read-only"]], ids=["read-write", "read-only"])
def test_mount_refuses_what_qemu_writes(mode: list[str], volume: LuksFiles, tmp_path: Path) -> None:
    """While QEMU has the payload open for writing it is in use, and when QEMU has closed it, it is not."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    arguments: list[str | Path] = [
        "--header",
        volume.header,
        "--key-file",
        volume.key_file,
        volume.payload,
        mountpoint,
    ]

    with qemu.held_open(volume.payload):
        done = lukshdrfs("mount", *mode, *arguments)
        assert done.returncode == 5, done.stderr
        assert fuse_mounts(mountpoint) == []
    with Mounted(volume.payload, *mode, header=volume.header, key_file=volume.key_file) as mount:
        assert mount.image.stat().st_size == volume.payload.stat().st_size


def test_library_holds_same_lock(volume: LuksFiles, tmp_path: Path) -> None:
    """A volume that Python has open for writing is as closed to QEMU as a mounted one."""
    copy = tmp_path / "copy.img"
    shutil.copyfile(volume.payload, copy)
    write = [program("qemu-io"), "-f", "raw", "-c", "write 0 512"]

    with package.open_volume(volume.payload, header=volume.header, passphrase=volume.secret):
        assert subprocess.run([*write, volume.payload], capture_output=True, check=False).returncode != 0
        assert subprocess.run([*write, copy], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*write, volume.payload], capture_output=True, check=False).returncode == 0
