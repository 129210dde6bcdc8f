"""
What the tests need from the machine, and how a missing thing is reported.

A need is a program's name, `root`, `fuse`, `loop`, `guest` (the small virtual machine of the examples), or one of the
two things that not every release has ready and that are found through the environment: `dmcrypt-vm`, and `qemu10`,
which may be the system's own.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from support import guest

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

PACKAGES = {
    "busybox": "busybox-static",
    "cpio": "cpio",
    "cryptsetup": "cryptsetup-bin",
    "debugfs": "e2fsprogs",
    "findmnt": "mount",
    "fio": "fio",
    "fsck.ext4": "e2fsprogs",
    "fuse2fs": "fuse2fs",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "nbdkit": "nbdkit",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "partx": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-x86_64": "qemu-system-x86",
    "mkswap": "mount",
    "mount": "mount",
    "setpriv": "util-linux",
    "systemd-analyze": "systemd",
    "systemd-ask-password": "systemd",
    "setsid": "util-linux",
    "strace": "strace",
    "swapon": "mount",
    "sfdisk": "fdisk",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
    "vgcreate": "lvm2",
    "virt-xml-validate": "libvirt-clients",
    "xmllint": "libxml2-utils",
}

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
"""Programs for administrators are not on everyone's PATH, but anyone may use mkfs.ext4 on a file."""


@dataclasses.dataclass(frozen=True)
class Missing:
    """Something that is not there; `excused` when its absence is fine in CI too."""

    reason: str
    excused: bool = False


def program(name: str) -> str:
    """Return the path of a program."""
    path = shutil.which(name, path=SYSTEM_PATH)
    assert path is not None, f"{name} is missing, and the test does not name it among its needs"
    return path


def dmcrypt_vm() -> str:
    """Return the command that runs others beside a kernel's dm-crypt."""
    return os.environ["LUKSHDRFS_DMCRYPT_VM"]


def qemu10(name: str) -> str:
    """Return the path of a program of QEMU 9 or newer."""
    return str(Path(qemu10_folder()) / name)


@functools.cache
def qemu10_folder() -> str:
    """Return the folder with QEMU 9 or newer: the one that is named, or the system's, or nothing."""
    named = os.environ.get("LUKSHDRFS_QEMU10", "")
    qemu_img = shutil.which("qemu-img", path=SYSTEM_PATH)
    if named or qemu_img is None:
        return named
    said = subprocess.run([qemu_img, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"qemu-img version (\d+)", said)
    return str(Path(qemu_img).parent) if version and int(version[1]) >= 9 else ""


def missing(need: str) -> Missing | None:
    """Return why `need` cannot be had here, or None when it is there."""
    if need == "root":
        return None if os.geteuid() == 0 else Missing("root is needed: run the tests as root, too")
    if need == "fuse":
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return Missing("/dev/fuse is missing or closed to us: load the module fuse, or pass the device in")
        return missing("fusermount3")
    if need == "loop":
        if os.geteuid() != 0 or not os.access("/dev/loop-control", os.R_OK | os.W_OK):
            return Missing("loop devices are missing: run the tests as root, where /dev/loop-control is")
        return missing("losetup")
    if need == "guest":
        reason = guest.why_missing()
        return Missing(reason) if reason else None
    if need == "dmcrypt-vm":
        return _outside("LUKSHDRFS_DMCRYPT_VM", "the path of a program that runs commands beside a kernel's dm-crypt")
    if need == "qemu10":
        return _missing_qemu10()
    if shutil.which(need, path=SYSTEM_PATH) is None:
        return Missing(f"{need} is missing: apt-get install {PACKAGES.get(need, need)}")
    return None


def _missing_qemu10() -> Missing | None:
    if qemu10_folder() and "LUKSHDRFS_QEMU10" not in os.environ:
        return None
    return _outside("LUKSHDRFS_QEMU10", "the bin/ directory of QEMU 9 or newer")


def _outside(variable: str, meaning: str) -> Missing | None:
    value = os.environ.get(variable, "")
    if not value:
        return Missing(f"set {variable} to {meaning}", excused=True)
    return None if Path(value).exists() else Missing(f"{variable}={value} does not exist")


def require(needs: Iterable[str]) -> None:
    """Skip the test when one of its needs is missing; in CI fail, so that no test is silently left out."""
    for need in needs:
        lack = missing(need)
        if lack is not None and IN_CI and not lack.excused:
            pytest.fail(lack.reason, pytrace=False)
        if lack is not None:
            pytest.skip(lack.reason)
