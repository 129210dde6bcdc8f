"""What the image is for: a loop device with a file system, and QEMU's raw drive."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from support import qemu
from support.cryptsetup import LUKS1_XTS, XTS_512, XTS_4096, Format, LuksFiles
from support.devices import ext4, loop_device
from support.mounts import Mounted
from support.tools import program
from support.volumes import MIB, MakeVolume

pytestmark = [pytest.mark.needs("fuse", "cryptsetup"), pytest.mark.each_data_path]


def fill(folder: Path) -> dict[str, str]:
    """Write files of many sizes, and return their digests."""
    rng = random.Random(40)
    for number, size in enumerate([0, 1, 511, 4096, 4097, 100_000, 1_500_000]):
        path = folder / f"directory{number % 3}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(size))
    shutil.rmtree(folder / "directory1")
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    """Return what is in every file below `folder`."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_file_system(image: Path) -> None:
    """Have fsck look at everything, without changing anything."""
    done = subprocess.run([program("fsck.ext4"), "-f", "-n", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("loop", "mkfs.ext4", "fsck.ext4")
@pytest.mark.parametrize("layout", [XTS_512, XTS_4096, LUKS1_XTS], ids=lambda layout: str(layout.id))
@pytest.mark.parametrize("block_size", [1024, 4096])
def test_ext4_on_loop_device(layout: Format, block_size: int, make_volume: MakeVolume, tmp_path: Path) -> None:
    """An ext4 on a loop device keeps its files over both mounts, and is clean each time."""
    files = make_volume(layout, size=16 * MIB)
    there = tmp_path / "there"

    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        with loop_device(mount.image) as device:
            subprocess.run([program("mkfs.ext4"), "-q", "-b", str(block_size), device], check=True)
            with ext4(device, there):
                written = fill(there)
            check_file_system(Path(device))
        check_file_system(mount.image)
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        check_file_system(mount.image)
        with loop_device(mount.image) as device, ext4(device, there):
            assert digests(there) == written
    with (
        Mounted(files.payload, "--read-only", header=files.header, key_file=files.key_file) as mount,
        loop_device(mount.image, "--read-only") as device,
    ):
        there.mkdir(exist_ok=True)
        subprocess.run([program("mount"), "-t", "ext4", "-o", "ro", device, there], check=True)
        assert digests(there) == written
        subprocess.run([program("umount"), there], check=True)


@pytest.mark.needs("loop", "mkfs.ext4", "fsck.ext4")
@pytest.mark.parametrize("options", [("--direct-io=on",), ("--direct-io=on", "--sector-size=4096")])
def test_ext4_on_direct_loop_device(options: tuple[str, ...], make_volume: MakeVolume, tmp_path: Path) -> None:
    """The same with a loop device that goes past the page cache."""
    files = make_volume(XTS_4096, size=16 * MIB)

    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        with loop_device(mount.image, *options) as device:
            loop = Path("/sys/block") / Path(device).name / "loop"
            assert (loop / "dio").read_text().strip() == "1"
            subprocess.run([program("mkfs.ext4"), "-q", device], check=True)
            with ext4(device, tmp_path / "there") as there:
                written = fill(there)
            with ext4(device, tmp_path / "there") as there:
                assert digests(there) == written
        check_file_system(mount.image)


@pytest.mark.needs("loop")
def test_loop_device_as_payload(volume: LuksFiles) -> None:
    """A payload may be a block device; it is as large as the kernel says."""
    mountpoint = volume.payload.with_name("mnt")
    with loop_device(volume.payload) as device:
        with Mounted(
            Path(device), header=volume.header, key_file=volume.key_file, mountpoint=_made(mountpoint)
        ) as mount:
            assert mount.image.stat().st_size == 4 * MIB
            with mount.image.open("r+b") as image:
                image.write(b"on a device")
        with Mounted(
            Path(device), "--read-only", header=volume.header, key_file=volume.key_file, mountpoint=mountpoint
        ) as mount:
            assert mount.image.read_bytes()[:11] == b"on a device"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.needs("qemu-img")
def test_qemu_img_sees_raw_image(mounted: Mounted) -> None:
    """qemu-img finds a raw image of the right size, and compares and copies it."""
    info = json.loads(qemu.run(program("qemu-img"), "info", "--output=json", "-f", "raw", mounted.image))
    copy = mounted.payload.with_name("copy.img")

    assert info["virtual-size"] == 4 * MIB
    qemu.run(program("qemu-img"), "convert", "-T", "none", "-f", "raw", "-O", "raw", mounted.image, copy)
    assert "identical" in qemu.run(program("qemu-img"), "compare", "-f", "raw", "-F", "raw", copy, mounted.image)


@pytest.mark.needs("qemu-io")
@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough", "directsync"])
def test_qemu_io(cache: str, mounted: Mounted) -> None:
    """qemu-io verifies the patterns that it wrote, at offsets of any alignment."""
    output = qemu.run(
        program("qemu-io"), "-f", "raw", "-t", cache,
        "-c", "write -P 1 0 4M", "-c", "write -P 2 1000 70000", "-c", "aio_write -P 3 1M 256k",
        "-c", "aio_write -P 4 2M 512", "-c", "aio_flush", "-c", "flush",
        "-c", "read -P 1 0 1000", "-c", "read -P 2 1000 70000", "-c", "read -P 3 1M 256k",
        "-c", "read -P 4 2M 512", "-c", "read -P 1 2097664 1000", mounted.image,
    )  # fmt: skip
    assert "Pattern verification failed" not in output
    assert mounted.image.read_bytes()[1000:71000] == b"\2" * 70000


@pytest.mark.needs("qemu-system-x86_64")
@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("aio", ["threads", "io_uring"])
def test_drive_of_qemu_machine(cache: str, aio: str, mounted: Mounted) -> None:
    """A virtual machine uses the image as its raw drive: its writes are in the image, and it can flush them."""
    if aio == "io_uring" and not _has_io_uring():
        pytest.skip("io_uring is closed to us: set the sysctl kernel.io_uring_disabled to 0")
    drive = f"if=none,id=disk,format=raw,file={mounted.image},cache={cache},aio={aio}"
    with qemu.Machine("-drive", drive) as machine:
        for command in ("write -P 7 4096 1M", "write -P 8 512 512", "flush", "read -P 7 4096 1M"):
            answer = machine.drive("disk", command)
            assert "failed" not in answer.lower(), answer
            assert "error" not in answer.lower(), answer
    data = mounted.image.read_bytes()
    assert data[4096 : 4096 + MIB] == b"\7" * MIB
    assert data[512:1024] == b"\x08" * 512


def _has_io_uring() -> bool:
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    return not setting.exists() or setting.read_text().strip() == "0"


@pytest.mark.needs("fio")
@pytest.mark.parametrize(
    "options",
    [
        ["--ioengine=psync", "--bsrange=71-71000", "--bs_unaligned=1"],
        ["--ioengine=psync", "--bsrange=512-64k", "--blockalign=512", "--direct=1"],
        ["--ioengine=libaio", "--iodepth=16", "--bsrange=512-64k", "--blockalign=512", "--direct=1"],
        ["--ioengine=mmap", "--bs=4k"],
    ],
    ids=["unaligned", "direct", "direct-deep", "mmap"],
)
def test_fio_verifies(options: list[str], mounted: Mounted) -> None:
    """fio writes blocks of random sizes at random offsets with checksums inside, and finds each one again."""
    done = subprocess.run(
        [
            program("fio"), "--name=verify", f"--filename={mounted.image}", "--size=4M", "--rw=randwrite",
            "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=41", "--allow_file_create=0",
            *options,
        ],
        cwd=mounted.payload.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verify:" not in done.stderr


@pytest.mark.needs("mkfs.ext4", "fsck.ext4", "debugfs")
def test_ext4_without_loop_device(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Without root, e2fsprogs itself fills the image's file system and reads it back."""
    files = make_volume(XTS_4096, size=8 * MIB)
    source = tmp_path / "source"
    source.mkdir()
    (source / "note").write_bytes(os.urandom(50_000))

    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        subprocess.run([program("mkfs.ext4"), "-q", "-F", "-d", source, mount.image], check=True)
    with Mounted(files.payload, "--read-only", header=files.header, key_file=files.key_file) as mount:
        check_file_system(mount.image)
        target = tmp_path / "note"
        subprocess.run([program("debugfs"), "-R", f"dump /note {target}", mount.image], check=True, capture_output=True)
    assert target.read_bytes() == (source / "note").read_bytes()
