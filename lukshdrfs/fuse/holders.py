"""
Who holds a mount: what its user has to end before it can be unmounted.

Sources: proc(5) (`/proc/PID/fd`, `cwd`, `root`, `exe`, `map_files`), the kernel's Documentation/ABI for
`/sys/block/loopN/loop/backing_file`. Only links are read: to look at a file of the mount could wait for a daemon
that does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lukshdrfs.fuse.mounts import Mount, mount_table

_FEW = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """A process or a device that uses the mount."""

    what: str
    """`qemu-system-x86 (process 4711)`, `/dev/loop0, mounted at /mnt`."""


def holders(mountpoint: str) -> list[Holder]:
    """Return who is known to hold a mount; an ordinary user sees only processes of its own."""
    return [*_loop_devices(mountpoint), *_processes(mountpoint)]


def other_namespace(mount: Mount) -> str:
    """Return a process in whose mount namespace a mount still is, though it is gone here; empty if there is none."""
    wanted = f" {mount.device} "
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            table = (process / "mountinfo").read_text(encoding="utf-8", errors="replace")
            if any(wanted in line and f" - {mount.type} " in line for line in table.splitlines()):
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return f"{name} (process {process.name})"
        except OSError:
            continue
    return ""


def describe_holders(mountpoint: str) -> str:
    """Return in one line who holds a mount, and how to find out where that is not known."""
    found = [holder.what for holder in holders(mountpoint)]
    if not found:
        return f"close what is open on it (see 'fuser -vm {mountpoint}')"
    more = f", and {len(found) - _FEW} more" if len(found) > _FEW else ""
    return f"it is held by {', '.join(found[:_FEW])}{more}"


def _is_below(path: str, mountpoint: str) -> bool:
    path = path.removesuffix(" (deleted)")
    return path == mountpoint or path.startswith(f"{mountpoint}/")


def _loop_devices(mountpoint: str) -> Iterator[Holder]:
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
        except OSError:
            continue
        if _is_below(backing, mountpoint):
            device = f"/dev/{entry.parent.parent.name}"
            places = [mount.mountpoint for mount in mount_table() if mount.source.startswith(device)]
            yield Holder(f"{device}, mounted at {', '.join(places)}" if places else device)


def _processes(mountpoint: str) -> Iterator[Holder]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and process.name != str(os.getpid()) and _holds(process, mountpoint):
            try:
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
            except OSError:
                continue
            yield Holder(f"{name} (process {process.name})")


def _holds(process: Path, mountpoint: str) -> bool:
    links = [process / "cwd", process / "root", process / "exe"]
    for folder in ("fd", "map_files"):
        try:
            links += (process / folder).iterdir()
        except OSError:
            continue
    for link in links:
        try:
            if _is_below(os.readlink(link), mountpoint):  # noqa: PTH115 - the target is a text, not a path to touch
                return True
        except OSError:
            continue
    return False
