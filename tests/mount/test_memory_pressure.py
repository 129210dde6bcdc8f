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


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("daemon", ["beside", "inside"])
def test_loop_device_under_memory_pressure(make_volume: MakeVolume, tmp_path: Path, daemon: str, cache: str) -> None:
    """What is written to it arrives, though writers (and the daemon, as an I/O flusher) have hardly any memory."""
    volume = make_volume(XTS_4096, 512 * MIB)
    with memory_cgroup(MEMORY) as group:
        if daemon == "inside" and group.is_old and not has_capability(CAP_SYS_RESOURCE):
            pytest.skip("in a memory cgroup of version 1, only an I/O flusher is safe, and CAP_SYS_RESOURCE is missing")
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
