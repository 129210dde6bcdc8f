"""The whole of it: a detached header, a qcow2 image, and a guest whose system is on it, through QEMU and through us."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import qemu
from support.cryptsetup import LUKS1_XTS, LuksFiles, make_header
from support.guest import GUEST
from support.mounts import Mounted
from support.tools import program, qemu10_folder
from support.volumes import new_files

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "guest", "qemu-img", "qemu-storage-daemon", "qemu10")

INSTALL = """
set -e
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
mkdir -p /mnt/bin /mnt/dev /mnt/proc
cp /bin/busybox /mnt/bin/
printf '#!/bin/busybox sh\\n/bin/busybox cat /turns\\n/bin/busybox echo turn >>/turns\\n' >/mnt/start
chmod +x /mnt/start
echo installed >/mnt/turns
umount /mnt
"""
BOOT = """
set -e
mount /dev/vda /mnt
chroot /mnt /start
umount /mnt
"""


def boot(commands: str, *options: str) -> list[str]:
    """Boot the guest with a disk, and return what it says."""
    environment = {**os.environ, "PATH": f"{qemu10_folder()}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", GUEST, "boot", commands, *options, "-device", "virtio-blk-pci,drive=disk"],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert "guest: exit status 0" in done.stdout, done.stdout + done.stderr
    return [line.strip() for line in done.stdout.splitlines()]


def through_us(files: LuksFiles, commands: str) -> list[str]:
    """Boot from our image, which is raw to QEMU."""
    with Mounted(
        files.payload, "--payload-format", "qcow2", header=files.header, key_file=files.key_file
    ) as mount:  # fmt: skip
        return boot(commands, "-drive", f"file={mount.image},format=raw,if=none,id=disk,cache=none,aio=io_uring")


def through_qemu(files: LuksFiles, commands: str) -> list[str]:
    """Boot from QEMU's luks driver over qcow2, with the detached header."""
    node = {
        "driver": "luks", "node-name": "disk", "key-secret": "s", "read-only": False,
        "file": {"driver": "qcow2", "file": {"driver": "file", "filename": str(files.payload)}},
        "header": {"driver": "raw", "file": {"driver": "file", "filename": str(files.header)}},
    }  # fmt: skip
    return boot(commands, *qemu.luks_secret(files.key_file), "-blockdev", json.dumps(node))


def test_a_guest_boots_from_it_both_ways(tmp_path: Path) -> None:
    """A system that is installed through our mount starts through QEMU, and the other way round; each adds to it."""
    files = new_files(tmp_path, 64 << 20)
    files.key_file.write_bytes(b"a secret to QEMU is text")
    make_header(files, LUKS1_XTS)
    files.payload.unlink()
    qemu.run(program("qemu-img"), "create", "-q", "-f", "qcow2", files.payload, "64M")
    through_us(files, INSTALL)
    assert [through_qemu(files, BOOT).count("turn"), through_us(files, BOOT).count("turn")] == [0, 1]
    assert through_qemu(files, BOOT).count("turn") == 2
