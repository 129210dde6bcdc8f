"""The image exported by a server of QEMU's: whatever that server claims of zeros and trims, what is read is right."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import qemu
from support.cryptsetup import LuksFiles
from support.mounts import Mounted
from support.tools import program
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "qemu-nbd", "qemu-io")

MIB = 1 << 20


@contextlib.contextmanager
def exported(image: Path, folder: Path) -> Iterator[str]:
    """Have a server for an image, and yield its address."""
    socket = folder / "nbd"
    with subprocess.Popen([program("qemu-nbd"), "--persistent", "-f", "raw", "-k", socket, image]) as server:
        wait_until(socket.exists, "the server listens")
        try:
            yield f"nbd+unix:///?socket={socket}"
        finally:
            server.terminate()


@pytest.mark.parametrize("how", ["-z", "-z -u", "-z -n", "-z -u -n"])
def test_zeros_are_written_encrypted(volume: LuksFiles, tmp_path: Path, how: str) -> None:
    """Zeros asked for plainly, with unmapping, or only if they are fast: zeros are read, and none are stored."""
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        with exported(mount.image, tmp_path) as address:
            words = ["-c", f"write -P 7 0 {MIB}", "-c", f"write {how} 4096 65536", "-c", "flush"]
            qemu.run(program("qemu-io"), "-f", "raw", *words, address)
        assert mount.image.read_bytes()[: 2 * 65536] == b"\7" * 4096 + bytes(65536) + b"\7" * (65536 - 4096)
    assert bytes(512) not in volume.payload.read_bytes()[4096 : 4096 + 65536]


def test_a_trim_gives_nothing_back(volume: LuksFiles, tmp_path: Path) -> None:
    """A discard succeeds at the server, and changes neither what is read nor what the payload takes."""
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        with exported(mount.image, tmp_path) as address:
            qemu.run(program("qemu-io"), "-f", "raw", "-c", f"write -P 7 0 {MIB}", "-c", "flush", address)
            before = volume.payload.stat().st_blocks
            qemu.run(program("qemu-io"), "-f", "raw", "-c", f"discard 0 {MIB}", "-c", "flush", address)
        assert mount.image.read_bytes()[:MIB] == b"\7" * MIB
        assert volume.payload.stat().st_blocks == before
