"""The examples of what the image is for are programs, and run as they stand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.examples import run_example
from support.tools import SYSTEM_PATH, require


def has_device_mapper() -> bool:
    """Tell whether this kernel has device-mapper: its node may be there without it."""
    dmsetup = shutil.which("dmsetup", path=SYSTEM_PATH)
    return (
        dmsetup is not None
        and Path("/dev/mapper/control").exists()
        and subprocess.run([dmsetup, "version"], capture_output=True, check=False).returncode == 0
    )


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
