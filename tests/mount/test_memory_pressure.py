"""A file system on a loop device on the image, with next to no memory: nobody waits for himself."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from support.cryptsetup import XTS_4096
from support.devices import ext4, loop_device
from support.memory_cgroup import MemoryCgroup, memory_cgroup
from support.mounts import LUKSHDRFS, Mounted
from support.processes import CAP_SYS_RESOURCE, has_capability
from support.tools import program
from support.volumes import MIB, MakeVolume

pytestmark = [pytest.mark.root, pytest.mark.needs("fuse", "cryptsetup", "loop", "mkfs.ext4")]

MEMORY = 128 * MIB
WRITERS, EACH = 4, 96 * MIB
PATIENCE_S = 60

WRITE = """
import os, sys
name, size = sys.argv[1], int(sys.argv[2])
with open(name, "wb") as file:
    piece = name.encode().ljust(4096, b"x") * 256
    for _ in range(size // len(piece)):
        file.write(piece)
    file.flush()
    os.fsync(file.fileno())
"""


def end_connection(number: int, folder: Path) -> None:
    """End a FUSE connection by force: a thread that waits for memory in the kernel cannot even be killed."""
    folder.mkdir()
    subprocess.run([program("mount"), "-t", "fusectl", "fusectl", folder], check=True)
    (folder / str(number) / "abort").write_text("1")
    subprocess.run([program("umount"), folder], check=True)


def write_much(group: MemoryCgroup, folder: Path, connection: int, control: Path) -> None:
    """
    Write far more than there is memory for, by several processes in the group, and wait until it is written.

    `connection` is the mount's, for the worst; `control` a folder that can be made.
    """
    writers = [
        subprocess.Popen([*group.joining(), "python3", "-c", WRITE, folder / str(number), str(EACH)])
        for number in range(WRITERS)
    ]
    deadline = time.monotonic() + PATIENCE_S
    try:
        for writer in writers:
            assert writer.wait(deadline - time.monotonic()) == 0
    except subprocess.TimeoutExpired:
        end_connection(connection, control)
        for writer in writers:
            writer.kill()
            writer.wait()
        raise
    assert group.was_short(), "there is too much memory to see anything"


def skip_unless_safe(daemon: str, group: MemoryCgroup) -> None:
    """Skip where the kernel has a thread that writes to the payload wait for the loop device, which waits for it."""
    if daemon == "inside" and group.is_old and not has_capability(CAP_SYS_RESOURCE):
        pytest.skip("in a memory cgroup of version 1, only an I/O flusher is safe, and CAP_SYS_RESOURCE is missing")


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("daemon", ["beside", "inside"])
def test_loop_device_under_memory_pressure(make_volume: MakeVolume, tmp_path: Path, daemon: str, cache: str) -> None:
    """What is written to it arrives, though writers (and the daemon with them) have hardly any memory."""
    volume = make_volume(XTS_4096, 512 * MIB)
    with memory_cgroup(MEMORY) as group:
        skip_unless_safe(daemon, group)
        mount = Mounted(
            volume.payload, "--cache", cache, header=volume.header, key_file=volume.key_file,
            command=[*group.joining(), LUKSHDRFS] if daemon == "inside" else [],
        )  # fmt: skip
        with mount, loop_device(mount.image) as device:
            connection = os.minor(mount.mountpoint.stat().st_dev)
            subprocess.run([program("mkfs.ext4"), "-q", device], check=True)
            with ext4(device, tmp_path / "fs") as folder:
                write_much(group, folder, connection, tmp_path / "control")
                for number in range(WRITERS):
                    name = folder / str(number)
                    assert name.read_bytes() == os.fsencode(name).ljust(4096, b"x") * (EACH // 4096)


USE_MUCH = """
import os, sys
blocks = [os.urandom(4096) * 256 for _ in range(int(sys.argv[1]))]
for block in [bytearray(block) for block in blocks[::4]] + blocks:
    assert block[:4096] == block[-4096:]
"""


@pytest.mark.needs("mkswap", "swapon")
@pytest.mark.parametrize("daemon", ["beside", "inside"])
def test_swap_on_the_image(make_volume: MakeVolume, tmp_path: Path, daemon: str) -> None:
    """Of who has more than there is memory for, the rest is put on the image, and comes back."""
    volume = make_volume(XTS_4096, 256 * MIB)
    with memory_cgroup(MEMORY) as group:
        skip_unless_safe(daemon, group)
        mount = Mounted(
            volume.payload, "--data-path", "native", header=volume.header, key_file=volume.key_file,
            command=[*group.joining(), LUKSHDRFS] if daemon == "inside" else [],
        )  # fmt: skip
        with mount, loop_device(mount.image) as device:
            connection = os.minor(mount.mountpoint.stat().st_dev)
            subprocess.run([program("mkswap"), device], check=True, capture_output=True)
            subprocess.run([program("swapon"), device], check=True)
            try:
                user = subprocess.Popen([*group.joining(), "python3", "-c", USE_MUCH, "120"])
                try:
                    assert user.wait(PATIENCE_S) == 0
                except subprocess.TimeoutExpired:
                    end_connection(connection, tmp_path / "control")
                    user.kill()
                    user.wait()
                    raise
                assert group.was_short(), "there is too much memory to see anything"
            finally:
                subprocess.run([program("swapoff"), device], check=True)


@pytest.mark.needs("mkswap", "swapon")
def test_the_image_itself_is_no_swap_file(make_volume: MakeVolume) -> None:
    """The kernel refuses it: it would have to know where the file's blocks are."""
    volume = make_volume(XTS_4096, 4 * MIB)
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        subprocess.run([program("mkswap"), mount.image], check=True, capture_output=True)
        done = subprocess.run([program("swapon"), mount.image], check=False, capture_output=True, text=True)
        assert done.returncode != 0
        assert "Invalid argument" in done.stderr
