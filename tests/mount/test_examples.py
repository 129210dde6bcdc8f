"""The examples of what the image is for are programs, and run as they stand."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support import devices, guest
from support.cryptsetup import LuksFiles
from support.examples import EXAMPLES, end_example, run_example, start_example
from support.mounts import Mounted
from support.tools import SYSTEM_PATH, program, require
from support.waiting import wait_until

HOTPLUG = EXAMPLES / "hotplug.py"
DOMAIN = EXAMPLES / "libvirt-disk.xml"

needs_guest = pytest.mark.needs("fuse", "guest", "mkfs.ext4", "fsck.ext4", "debugfs", "setpriv")


def has_device_mapper() -> bool:
    """Tell whether this kernel has device-mapper: its node may be there without it."""
    dmsetup = shutil.which("dmsetup", path=SYSTEM_PATH)
    return (
        dmsetup is not None
        and Path("/dev/mapper/control").exists()
        and subprocess.run([dmsetup, "version"], capture_output=True, check=False).returncode == 0
    )


def processes_in(folder: Path) -> list[str]:
    """Return the commands of the processes that work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
    return found


@pytest.mark.needs("fuse", "loop", "sfdisk", "partx", "mkfs.ext4", "fsck.ext4", "mkfs.xfs")
def test_partitions(tmp_path: Path) -> None:
    """The file systems on the partitions of an image, and on LVM where the kernel has it, keep their files."""
    with_lvm = has_device_mapper()
    if with_lvm:
        require(["vgcreate"])
    shown, _ = run_example("partitions.sh", folder=tmp_path)
    assert "Disklabel type: gpt" in shown
    assert "Sector size (logical/physical): 4096 bytes" in shown
    if not with_lvm:
        assert shown.count("disk/file: OK") == 2
        pytest.skip("all but LVM: the kernel has no device-mapper (modprobe dm-mod)")
    assert shown.count("disk/file: OK") == 3


@pytest.mark.needs("fuse", "loop", "mkfs.ext4", "fsck.ext4")
def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    """A loop device with the volume's own sectors, past the page cache, keeps files, and takes no half sectors."""
    shown, errors = run_example("sectors-4096.sh", folder=tmp_path)
    assert "disk/file: OK" in shown
    assert "Invalid argument" in errors


@pytest.mark.needs("fuse", "nbdkit", "openssl", "mkfs.ext4", "fsck.ext4", "debugfs")
def test_payload_on_another_host(tmp_path: Path) -> None:
    """Over TLS, to a server that crashes and forgets: the files are there."""
    shown, _ = run_example("remote.sh", folder=tmp_path)
    assert shown.endswith("all there\n")


@needs_guest
@pytest.mark.parametrize(("cache", "aio"), [("none", "io_uring"), ("none", "native"), ("writeback", "threads")])
def test_guest_that_is_killed(cache: str, aio: str, tmp_path: Path) -> None:
    """What a real guest has synced is in the volume when its machine is killed, and its next boot finds it."""
    shown, _ = run_example("vm-disk.sh", cache, aio, folder=tmp_path)
    assert f"cache={cache}," in shown
    assert shown.count("file5: OK") == 2
    assert shown.count("treasure") == 1


@needs_guest
def test_guest_with_hot_plugged_disk(tmp_path: Path) -> None:
    """A running guest takes the image as a disk, writes, and lets it go; then the volume can be unmounted."""
    shown, _ = run_example("vm-hotplug.sh", folder=tmp_path)
    assert shown.count("treasure") == 1


@pytest.mark.parametrize(
    ("name", "needs"),
    [("vm-hotplug.sh", ["fuse", "guest"]), ("partitions.sh", ["fuse", "loop", "sfdisk", "mkfs.xfs"])],
)
def test_example_that_is_interrupted(name: str, needs: list[str], tmp_path: Path) -> None:
    """An example that is ended in the middle takes its guest, mounts, loop devices and files with it."""
    require(needs)

    def is_at_work() -> bool:
        return any("qemu" in words for words in processes_in(tmp_path)) or bool(devices.loop_devices(tmp_path))

    with start_example(name, folder=tmp_path) as process:
        try:
            wait_until(is_at_work, f"{name} has something to clean up")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            end_example(process)
    assert process.returncode == 143
    wait_until(lambda: not processes_in(tmp_path), "all processes have ended")
    assert os.listdir(tmp_path) == []


def script(path: Path, *lines: str) -> None:
    """Write a program."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def set_up_guest(folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Let guest.sh make a guest in a folder, with the programs on `path`."""
    return subprocess.run(
        [program("bash"), EXAMPLES / "guest.sh", "setup"],
        env={**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.needs("qemu-system-x86_64", "busybox", "cpio", "apt-get")
def test_guest_that_cannot_be_had(tmp_path: Path) -> None:
    """Where the kernel cannot be downloaded, guest.sh says so in its last line, and leaves nothing half made."""
    script(tmp_path / "apt-get", "echo E: no such package >&2", "exit 100")
    done = set_up_guest(tmp_path, f"{tmp_path}{os.pathsep}{SYSTEM_PATH}")
    assert done.returncode == 69
    assert "no such package" in done.stderr
    assert "cannot be downloaded" in guest.reason(done)
    assert guest.reason(done).count("\n") == 0
    assert os.listdir(tmp_path / "cache/lukshdrfs/guest") == ["lock"]


@pytest.mark.parametrize(("packed", "package"), [("xz", "xz-utils"), ("zst", "zstd")])
@pytest.mark.needs("qemu-system-x86_64", "busybox", "cpio", "dpkg-deb")
def test_guest_whose_modules_cannot_be_unpacked(packed: str, package: str, tmp_path: Path) -> None:
    """On a machine without what the kernel's modules are packed with, guest.sh names the package to install."""
    tree = tmp_path / "tree"
    for name in ("boot/vmlinuz-9", f"lib/modules/9/kernel/fs/ext4/ext4.ko.{packed}", "DEBIAN/control"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    for name in ("order", "builtin"):
        (tree / f"lib/modules/9/modules.{name}").touch()
    (tree / "DEBIAN/control").write_text(
        "Package: linux-image-9\nVersion: 9\nArchitecture: amd64\nMaintainer: nobody\nDescription: none\n"
    )
    deb = tmp_path / "linux-image-9.deb"
    subprocess.run([program("dpkg-deb"), "--build", tree, deb], check=True, capture_output=True)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in (
        "busybox", "cat", "chmod", "cp", "cpio", "dpkg-deb", "flock", "head", "mkdir", "mktemp", "qemu-system-x86_64",
        "readlink", "rm", "sed", "tar", "uname",
    ):  # fmt: skip
        (bin_ / name).symlink_to(program(name))
    script(bin_ / "apt-cache", 'case "$1" in depends) echo "  Depends: linux-image-9" ;; esac')
    script(bin_ / "apt-get", f"cp '{deb}' .")
    done = set_up_guest(tmp_path, str(bin_))
    assert done.returncode == 69
    assert guest.reason(done) == f"guest: {package.removesuffix('-utils')} is missing: apt-get install {package}"


def hotplug(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run hotplug.py."""
    return subprocess.run(
        [sys.executable, HOTPLUG, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.needs("qemu-system-x86_64")
def test_hotplug_that_fails(tmp_path: Path) -> None:
    """What QEMU refuses is one line, and leaves the image closed."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    monitor = tmp_path / "qmp"
    command = [program("qemu-system-x86_64"), "-machine", "none", "-nodefaults", "-display", "none"]
    with subprocess.Popen([*command, "-qmp", f"unix:{monitor},server=on,wait=off"]) as process:
        try:
            wait_until(monitor.exists, "QEMU listens")
            for arguments in (
                ["attach", "disk", tmp_path / "missing"],
                ["attach", "disk", image, "--cache", "writeback"],  # a machine without any bus
                ["detach", "disk"],
            ):
                done = hotplug(monitor, *arguments)
                assert done.returncode == 1
                assert done.stderr.startswith("hotplug: ")
                assert done.stderr.count("\n") == 1
            assert not any(image == held.readlink() for held in Path(f"/proc/{process.pid}/fd").iterdir())
        finally:
            process.kill()
    done = hotplug(monitor, "detach", "disk")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.needs("virt-xml-validate", "xmllint")
def test_domain_is_what_libvirt_takes() -> None:
    """libvirt's own schema has nothing against the domain."""
    done = subprocess.run([program("virt-xml-validate"), DOMAIN, "domain"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_qemu_takes_the_disk_of_the_domain(volume: LuksFiles) -> None:
    """The disk that the domain describes is one that QEMU starts with, on a volume with sectors of 4096 bytes."""
    require(["fuse", "qemu-system-x86_64"])
    disk = ET.parse(DOMAIN).find("devices/disk")
    assert disk is not None
    driver, sectors = disk.find("driver"), disk.find("blockio")
    assert driver is not None
    assert sectors is not None
    assert sectors.get("logical_block_size") == "4096"
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        aio = driver.get("io") if driver.get("io") != "io_uring" else "threads"
        drive = f"file={mount.image},if=none,id=disk,format={driver.get('type')},cache={driver.get('cache')},aio={aio}"
        device = ",".join(["virtio-blk-pci", "drive=disk", *(f"{name}={value}" for name, value in sectors.items())])
        done = subprocess.run(
            [
                program("qemu-system-x86_64"), "-machine", "q35", "-accel", "tcg", "-nodefaults", "-display", "none",
                "-S", "-monitor", "stdio", "-drive", drive, "-device", device,
            ],
            input="info block\nquit\n", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert str(mount.image) in done.stdout
