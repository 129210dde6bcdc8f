"""
Who holds a mount: what its user has to end before it can be unmounted.

Sources: proc(5) (`/proc/PID/fd`, `cwd`, `root`, `exe`, `map_files`), the kernel's Documentation/ABI for
`/sys/block/loopN/loop/backing_file`. Only links are read: to look at a file of the mount could wait for a daemon
that does not answer. What a process has mapped is told only when the process's memory is not being changed, which may
never be (`map_files` takes its mmap_lock); so it is asked last, and apart.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

from lukshdrfs.mounts.apart import ask_apart
from lukshdrfs.mounts.mountinfo import mount_lines
from lukshdrfs.mounts.table import Mount, mount_table

LOOK_LIMIT_S = 5.0
"""How long to look for holders: what is known by then is all that is told."""
_FEW = 5


def holders_apart(mountpoints: Collection[str]) -> tuple[dict[str, list[str]], bool]:
    """
    Return who is known to hold each mount, and whether everybody was looked at.

    A holder is in words: `qemu-system-x86 (process 4711)`, `/dev/loop0, mounted at /mnt`. An ordinary user sees only
    processes of its own.
    """
    known: dict[str, list[str]] = {mountpoint: [] for mountpoint in mountpoints}
    look = ask_apart(partial(_look_for_holders, mountpoints), LOOK_LIMIT_S)
    for mountpoint, what in look.answers:
        known[mountpoint].append(what)
    return known, look.ended


def other_namespace_apart(mount: Mount) -> str:
    """Return a process in whose mount namespace a mount still is, though it is gone here; empty if there is none."""
    return "".join(ask_apart(partial(_look_for_namespace, mount), LOOK_LIMIT_S).answers)


def describe_holders_apart(mountpoint: str) -> str:
    """Return in one line who holds a mount, and how to find out where that is not known."""
    known, complete = holders_apart([mountpoint])
    return _in_words(mountpoint, known[mountpoint], complete=complete)


def describe_holders(mountpoint: str) -> str:
    """Return the same as far as nothing can make it wait: what a process has only mapped is not looked at."""
    known = [what for _, what in [*_loop_devices([mountpoint]), *_processes([mountpoint], _open_links, set())]]
    return _in_words(mountpoint, known, complete=True)


def _in_words(mountpoint: str, known: list[str], *, complete: bool) -> str:
    if not known:
        unseen = "" if complete else "; a process that hangs could not be looked at"
        return f"close what is open on it (see 'fuser -vm {mountpoint}'{unseen})"
    more = f", and {len(known) - _FEW} more" if len(known) > _FEW else ""
    return f"it is held by {', '.join(known[:_FEW])}{more}"


def _look_for_namespace(mount: Mount) -> Iterator[str]:
    for process in _all_processes():
        try:
            table = mount_lines(process / "mountinfo")
            if any((line.device, line.type) == (mount.device, mount.type) for line in table):
                yield _described(process)
                return
        except OSError:
            continue


def _look_for_holders(mountpoints: Collection[str]) -> Iterator[tuple[str, str]]:
    named: set[tuple[str, str]] = set()
    yield from _loop_devices(mountpoints)
    yield from _processes(mountpoints, _open_links, named)
    yield from _processes(mountpoints, _mapped_links, named)


def _above(path: str, mountpoints: Iterable[str]) -> Iterator[str]:
    path = path.removesuffix(" (deleted)")
    for mountpoint in mountpoints:
        if path == mountpoint or path.startswith(f"{mountpoint}/"):
            yield mountpoint


def _loop_devices(mountpoints: Collection[str]) -> Iterator[tuple[str, str]]:
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
        except OSError:
            continue
        for mountpoint in _above(backing, mountpoints):
            device = f"/dev/{entry.parent.parent.name}"
            its = re.compile(rf"{device}(p\d+)?")
            places = [mount.mountpoint for mount in mount_table() if its.fullmatch(mount.source)]
            yield mountpoint, f"{device}, mounted at {', '.join(places)}" if places else device


def _all_processes() -> Iterator[Path]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and process.name != str(os.getpid()):
            yield process


def _described(process: Path) -> str:
    name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return f"{name} (process {process.name})"


def _open_links(process: Path) -> Iterator[str]:
    """Yield where a process is, what it runs and what it has open."""
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):  # another user's
        links += (process / "fd").iterdir()
    yield from _targets(links)


def _mapped_links(process: Path) -> Iterator[str]:
    """Yield what a process has mapped. This may hang."""
    try:
        yield from _targets((process / "map_files").iterdir())
    except OSError:
        return


def _targets(links: Iterable[Path]) -> Iterator[str]:
    for link in links:
        with contextlib.suppress(OSError):
            yield os.readlink(link)  # noqa: PTH115 - the target is a text, not a path to touch


def _processes(
    mountpoints: Collection[str], links: Callable[[Path], Iterator[str]], named: set[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Yield those whose links lead to a mount, and note them; those that have been noted are not named again."""
    for process in _all_processes():
        found = {mountpoint for target in links(process) for mountpoint in _above(target, mountpoints)}
        for mountpoint in found:
            if (mountpoint, process.name) not in named:
                named.add((mountpoint, process.name))
                try:
                    yield mountpoint, _described(process)
                except OSError:
                    continue
