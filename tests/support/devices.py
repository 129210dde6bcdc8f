"""Loop devices and the file systems on them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.tools import program
from support.waiting import wait_until


def loop_devices(folder: Path) -> list[str]:
    """Return the loop devices whose backing file is below `folder`."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if Path(entry.read_text().strip()).is_relative_to(folder):
                found.append(f"/dev/{entry.parent.parent.name}")
    return found


def detach(device: str) -> None:
    """Detach a loop device and wait until it is: the kernel does it when the last user has closed it."""
    subprocess.run([program("losetup"), "--detach", device], check=True, capture_output=True)
    backing = Path("/sys/block") / Path(device).name / "loop/backing_file"
    wait_until(lambda: not backing.exists(), f"{device} is detached")


@contextlib.contextmanager
def loop_device(image: Path, *options: str) -> Iterator[str]:
    """Attach `image` to a loop device."""
    done = subprocess.run(
        [program("losetup"), "--find", "--show", *options, image], check=True, capture_output=True, text=True
    )
    device = done.stdout.strip()
    try:
        yield device
    finally:
        detach(device)


@contextlib.contextmanager
def ext4(device: str, mountpoint: Path) -> Iterator[Path]:
    """Mount the ext4 file system on `device`."""
    mountpoint.mkdir(exist_ok=True)
    subprocess.run([program("mount"), "-t", "ext4", device, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run([program("umount"), mountpoint], check=True)


@contextlib.contextmanager
def tmpfs(mountpoint: Path, size: int) -> Iterator[Path]:
    """Mount a file system in memory that is full after `size` bytes."""
    mountpoint.mkdir(exist_ok=True)
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run([program("umount"), mountpoint], check=True)
