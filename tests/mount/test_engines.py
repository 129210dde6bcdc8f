"""Payloads that QEMU's block layer opens for us: qcow2 images."""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from support import qemu
from support.cryptsetup import LUKS1_XTS, LuksFiles, make_header
from support.model import apply, scattered_writes
from support.mounts import LUKSHDRFS, Mounted, is_mounted, lukshdrfs
from support.processes import commands, kill, wait_gone
from support.qcow2_images import name_data_file
from support.tools import program, qemu10
from support.volumes import MIB, new_files
from support.waiting import wait_until

from lukshdrfs.payload.nbd.payload import PATIENCE_S

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "qemu-storage-daemon", "qemu-img")

SIZE = 8 * MIB


def qcow2(files: LuksFiles, *options: str) -> Mounted:
    """Mount a volume whose payload is a qcow2 image."""
    return Mounted(files.payload, "--payload-format", "qcow2", *options, header=files.header, key_file=files.key_file)


def engines(folder: Path) -> list[int]:
    """Return the engines that work on something below a folder."""
    return [
        pid
        for pid, words in commands().items()
        if words and Path(words[0]).name == "qemu-storage-daemon" and any(str(folder) in word for word in words)
    ]


@pytest.fixture
def image(tmp_path: Path) -> LuksFiles:
    """Return a LUKS1 volume on a qcow2 image, with a detached header: what QEMU opens, too."""
    files = new_files(tmp_path, SIZE)
    files.key_file.write_bytes(b"a secret to QEMU is text")
    make_header(files, LUKS1_XTS)
    files.payload.unlink()
    qemu.run(program("qemu-img"), "create", "-q", "-f", "qcow2", files.payload, str(SIZE))
    return files


def test_create_makes_a_thin_image(tmp_path: Path) -> None:
    """`create --payload-format qcow2` makes a small file for a large volume, says so, and `info` shows both sizes."""
    key, header, payload = tmp_path / "key", tmp_path / "header", tmp_path / "payload.qcow2"
    key.write_bytes(b"thin")
    done = lukshdrfs(
        "create", "--payload-format", "qcow2", "--size", "200G", "--header", header, "--key-file", key,
        "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", payload,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "thin" in done.stderr
    assert payload.stat().st_size < MIB
    assert payload.stat().st_mode & 0o777 == 0o600
    shown = json.loads(lukshdrfs("info", "--json", "--payload-format", "qcow2", "--header", header, payload).stdout)[
        "payload"
    ]
    assert shown["format"] == "qcow2"
    assert shown["virtual_size"] == 200 << 30
    assert shown["allocated"] < MIB
    with Mounted(payload, "-o", "format=qcow2", header=header, key_file=key) as mount:
        assert mount.image.stat().st_size == 200 << 30
        with mount.image.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"far out", 150 << 30)
            assert os.pread(file.fileno(), 7, 150 << 30) == b"far out"
    assert payload.stat().st_size < 2 * MIB
    assert not engines(tmp_path)


@pytest.mark.needs("qemu10")
def test_qemu_and_we_take_turns(image: LuksFiles, tmp_path: Path) -> None:
    """What we write into the image, QEMU reads through its luks driver over qcow2 with our header; and back."""
    model = bytearray(random.Random(21).randbytes(SIZE))
    options = json.dumps({
        "driver": "luks", "key-secret": "secret0",
        "file": {"driver": "qcow2", "file": {"driver": "file", "filename": str(image.payload)}},
        "header": {"driver": "file", "filename": str(image.header)},
    })  # fmt: skip
    secret = ["--object", f"secret,id=secret0,file={image.key_file}"]
    for turn in range(2):
        with qcow2(image) as mount, mount.image.open("r+b", buffering=0) as file:
            if turn:
                assert mount.image.read_bytes() == model
            os.pwrite(file.fileno(), model, 0)
            write = functools.partial(write_at, file.fileno())
            apply(scattered_writes(random.Random(turn), SIZE), model, write)
            os.fsync(file.fileno())
        plain = tmp_path / f"plain{turn}"
        qemu.run(qemu10("qemu-img"), "convert", *secret, f"json:{options}", "-O", "raw", plain)
        assert plain.read_bytes() == model
        qemu.run(qemu10("qemu-io"), *secret, f"json:{options}", "-c", f"write -P {0x31 + turn} 1000 70000")
        model[1000:71000] = bytes([0x31 + turn]) * 70000
    with qcow2(image, "--read-only") as mount:
        assert mount.image.read_bytes() == model


def test_snapshots_and_backing_files(image: LuksFiles, tmp_path: Path) -> None:
    """An overlay takes the writes, and the image below stays; both are volumes."""
    with qcow2(image) as mount, mount.image.open("r+b", buffering=0) as file:
        file.write(b"below")
    overlay = tmp_path / "overlay.qcow2"
    qemu.run(program("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.payload), str(overlay))
    above = LuksFiles(overlay, image.header, image.key_file)
    with qcow2(above, "--backing-chain") as mount, mount.image.open("r+b", buffering=0) as file:
        assert file.read(5) == b"below"
        os.pwrite(file.fileno(), b"above", 0)
    for files, content in ((image, b"below"), (above, b"above")):
        with qcow2(files, "--read-only", "-o", "backing-chain") as mount:
            assert mount.image.read_bytes()[:5] == content


def write_at(descriptor: int, offset: int, data: bytes) -> None:
    """Write something at a place."""
    os.pwrite(descriptor, data, offset)


def refused(*arguments: str | Path) -> tuple[int, str]:
    """Run the program, which must fail in one line."""
    done = lukshdrfs(*arguments)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode, done.stderr


def test_what_cannot_be_opened(image: LuksFiles, volume: LuksFiles, tmp_path: Path) -> None:
    """A raw file is no qcow2, a used image is in use, an unknown scheme or format is refused; nothing is left."""
    place = tmp_path / "place"
    place.mkdir()
    opening = ("--header", image.header, "--key-file", image.key_file)
    assert refused("mount", "--payload-format", "qcow2", *opening, volume.payload, place)[0] == 4
    assert refused("mount", "--payload-format", "vmdk", *opening, image.payload, place)[0] == 1
    assert refused("mount", "--backing-chain", *opening, volume.payload, place)[0] == 1
    behind = f"nbd+unix:///?socket={tmp_path / 'nobody'}"
    assert refused("mount", "--payload-format", "qcow2", *opening, behind, place)[0] == 1
    with qcow2(image):
        status, message = refused("mount", "--payload-format", "qcow2", *opening, image.payload, place)
        assert status == 5, message
    assert not is_mounted(place)
    assert not engines(tmp_path)


def test_without_the_engine(image: LuksFiles, volume: LuksFiles, tmp_path: Path) -> None:
    """Where QEMU is not installed, the message says what to install; raw payloads do not care."""
    place = tmp_path / "place"
    place.mkdir()
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("fusermount3", "blkid"):
        (bare / name).symlink_to(program(name))
    environment = {"PATH": str(bare)}
    opening: list[str | Path] = ["--header", image.header, "--key-file", image.key_file]
    done = subprocess.run(
        [LUKSHDRFS, "mount", "--payload-format", "qcow2", *opening, image.payload, place],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "install" in done.stderr
    done = subprocess.run(
        [LUKSHDRFS, "mount", "--header", volume.header, "--key-file", volume.key_file, volume.payload, place],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", place).returncode == 0


def test_engine_that_dies(image: LuksFiles, tmp_path: Path) -> None:
    """An engine that is killed is started again, and is given what it had not flushed: nobody notices."""
    plain = random.Random(22).randbytes(2 * MIB)
    with qcow2(image) as mount:
        with mount.image.open("r+b", buffering=0) as file:
            for turn in range(2):
                file.write(plain[turn * MIB :][:MIB])  # the tables that say where it is are still in the engine
                (engine,) = engines(tmp_path)
                kill(engine)
                wait_gone(engine)
            os.fsync(file.fileno())
            assert os.pread(file.fileno(), 2 * MIB, 0) == plain
        mount.unmount()
    assert not engines(tmp_path)
    subprocess.run([program("qemu-img"), "check", image.payload], capture_output=True, check=False)
    with qcow2(image, "--read-only") as mount:
        assert mount.image.read_bytes()[: 2 * MIB] == plain


def test_engine_that_cannot_be_started_again(image: LuksFiles, tmp_path: Path) -> None:
    """Where the image has come to name another file, requests fail soon; the mount ends, and no process is left."""
    treasure = tmp_path / "treasure"
    treasure.write_bytes(bytes(SIZE))
    with qcow2(image) as mount:
        with mount.image.open("r+b", buffering=0) as file:
            os.pread(file.fileno(), MIB, 0)
            name_data_file(image.payload, str(treasure))
            begun = time.monotonic()
            (engine,) = engines(tmp_path)
            kill(engine)
            wait_gone(engine)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.pread(file.fileno(), MIB, 4 * MIB)
        mount.unmount()
        assert time.monotonic() - begun < PATIENCE_S / 2
    assert treasure.read_bytes() == bytes(SIZE)
    assert not engines(tmp_path)


def test_image_that_is_renamed(image: LuksFiles, tmp_path: Path) -> None:
    """The image is what was opened, whatever has its name later: an engine that dies is started on it again."""
    with qcow2(image) as mount, mount.image.open("r+b", buffering=0) as file:
        image.payload.rename(tmp_path / "elsewhere")
        qemu.run(program("qemu-img"), "create", "-q", "-f", "qcow2", image.payload, "1M")
        other = image.payload.read_bytes()
        (engine,) = engines(tmp_path)
        kill(engine)
        wait_gone(engine)
        os.pwrite(file.fileno(), b"written", 4 * MIB)
        os.fsync(file.fileno())
    assert image.payload.read_bytes() == other
    with qcow2(LuksFiles(tmp_path / "elsewhere", image.header, image.key_file), "--read-only") as mount:
        assert mount.image.read_bytes()[4 * MIB :][:7] == b"written"


def test_daemon_that_dies_takes_its_engine_along(image: LuksFiles, tmp_path: Path) -> None:
    """If our daemon is killed, the engine flushes and ends; the image opens again."""
    with qcow2(image) as mount:
        with mount.image.open("r+b", buffering=0) as file:
            file.write(b"written")
            os.fsync(file.fileno())
        (engine,) = engines(tmp_path)
        kill(mount.pid)
        wait_gone(engine)
        assert lukshdrfs("unmount", mount.mountpoint).returncode == 0
    with qcow2(image, "--read-only") as mount:
        assert mount.image.read_bytes()[:7] == b"written"


def test_daemon_that_dies_while_its_engine_starts(image: LuksFiles, tmp_path: Path) -> None:
    """Whoever is killed before the engine can hear of it leaves none behind, at whatever moment."""
    (tmp_path / "mnt").mkdir()
    moments = random.Random(23)
    for _ in range(5):
        with subprocess.Popen(
            [LUKSHDRFS, "mount", "-f", "--payload-format", "qcow2", "--header", image.header, "--key-file",
             image.key_file, image.payload, tmp_path / "mnt"],
        ) as daemon:  # fmt: skip
            wait_until(lambda: children(daemon.pid), "the engine begins to start")
            time.sleep(moments.uniform(0, 0.02))
            begun = children(daemon.pid)
            daemon.kill()
            daemon.wait()
        for pid in begun:
            wait_gone(pid)
        lukshdrfs("unmount", tmp_path / "mnt")  # if it had come that far
    assert not engines(tmp_path)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []
