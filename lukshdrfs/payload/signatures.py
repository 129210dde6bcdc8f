"""What is recognisable on a file or device: libblkid's opinion, by its program. No list of signatures of our own."""

from __future__ import annotations

import os
import shutil
import subprocess

from lukshdrfs.errors import DeviceError

FOUND_NOTHING = 2  # blkid(8), "EXIT STATUS"


def known_signature(name: str, *, ignore: str = "") -> str:
    """
    Return what is on a file or device (`ext4`, `gpt`, `LVM2_member`, …), empty if nothing is recognised.

    `ignore` is a superblock type that does not count. Raises DeviceError if blkid is not installed.
    """
    # ordinary users of Debian have no sbin in their PATH
    blkid = shutil.which("blkid", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if blkid is None:
        raise DeviceError("blkid is not installed, by which existing data is recognised; install util-linux")
    command = [blkid, "--probe", "--output", "export"]
    if ignore:
        command += ["--match-types", f"no{ignore}"]
    probe = subprocess.run([*command, "--", name], capture_output=True, text=True, check=False)
    if probe.returncode == FOUND_NOTHING:
        return ""
    fields = dict(line.split("=", 1) for line in probe.stdout.splitlines() if "=" in line)
    return fields.get("TYPE") or fields.get("PTTYPE") or "data of more than one kind"
