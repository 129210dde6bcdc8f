"""
How much memory this process can have: what the machine, its control groups and its own limits leave it.

A key derivation that takes more is not told so: the kernel ends it with SIGKILL. So it is looked at before.
Sources: proc(5), `meminfo`, `self/cgroup` and `self/mountinfo`; the kernel's Documentation/admin-guide, cgroup-v2.rst
and cgroup-v1/memory.rst; getrlimit(2).
"""

from __future__ import annotations

import ctypes
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lukshdrfs.errors import OutOfMemory
from lukshdrfs.mounts.mountinfo import mount_lines

_ROOT = Path("/")
_KIB = 1024
_UNLIMITED = 1 << 62
"""Bytes from which on a limit is none: version 1 of the control groups says the largest number of whole pages."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 4 << 20
"""Bytes; more than any request's buffer, which had better be used again."""
_THREADS_KIB = 96 * 1024
"""Stacks, and the address space that glibc sets aside for what a thread allocates."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One of those who decide how much memory this process can have."""

    name: str
    """Who it is: `this machine`, `the control group /a/b`, …"""
    limit_kib: int
    """The most that it ever grants, to all who share it."""
    free_kib: int
    """What can be had now; what the kernel can take back at once counts as free, swap too."""
    threads_kib: int = 0
    """What a thread that is started takes of it, whatever it does: addresses count here, not what is in them."""


def memory_bounds(*, throttled: bool = False, root: Path = _ROOT) -> list[Bound]:
    """
    Return all that bounds this process's memory: the machine, each control group that it is in, its own limits.

    With `throttled`, a control group's `memory.high` counts as its limit: nobody is ended above it, but slowed down.
    What cannot be read is left out. `root` is the folder with `proc` and the places where control groups are mounted.
    """
    meminfo = _sizes(root / "proc/meminfo")
    swap = meminfo.get("SwapFree", 0)
    bounds = []
    if "MemTotal" in meminfo and "MemAvailable" in meminfo:
        bounds.append(Bound("this machine", meminfo["MemTotal"], meminfo["MemAvailable"] + swap))
    for folder, name, version in _control_groups(root):
        bound = _of_version_1(folder, name, swap) if version == 1 else _of_version_2(folder, name, swap, high=throttled)
        if bound is not None:
            bounds.append(bound)
    return [*bounds, *_own_limits(root)]


def require_memory(what: str, memory_kib: int, *, beside_kib: int = 0) -> None:
    """
    Raise OutOfMemory, which says how much is needed and how much is there, unless so much memory can be had.

    `what` needs it, and `beside_kib` are taken by others of this process at the same time.
    """
    bound = min(memory_bounds(), key=lambda each: each.free_kib, default=None)
    if bound is None or memory_kib + beside_kib <= bound.free_kib:
        return
    needed = memory_kib if memory_kib > bound.free_kib else memory_kib + beside_kib
    raise OutOfMemory(
        f"{what} needs {in_mib(needed)} of memory; {bound.name} has {in_mib(bound.free_kib)} left of "
        f"{in_mib(bound.limit_kib)}"
    )


def in_mib(kib: int) -> str:
    """Return a size for people, in MiB where that is not too coarse."""
    return f"{kib // 1024} MiB" if kib >= 10 * 1024 else f"{kib} KiB"


def return_freed_memory() -> None:
    """
    Have this process return large blocks to the kernel as soon as they are freed.

    Otherwise glibc keeps blocks of up to 32 MiB once it has seen one freed: several headers, and all of a KDF's memory.
    Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no need of it
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _control_groups(root: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield this process's memory control group and those above it, as far as they are seen: folder, name, version."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        below = [(top, place) for top, place, kind in mounts if kind == version and _is_below(path, top)]
        if below:
            # the mount that shows most of the hierarchy
            top, place = min(below, key=lambda mount: len(mount[0]))
            relative = [part for part in path[len(top.rstrip("/")) :].split("/") if part]
        else:  # it was moved out of what is mounted here; what is mounted is nearest to the truth
            places = [place for _, place, kind in mounts if kind == version]
            if not places:
                continue
            place, relative = places[-1], []
        folder = root / place.lstrip("/")
        for count in range(len(relative), -1, -1):
            group = folder.joinpath(*relative[:count])
            # in version 1, a group above may not count those below it
            if version == 1 and count < len(relative) and _number(group / "memory.use_hierarchy") == 0:
                continue
            yield group, "/" + "/".join(relative[:count]), version


def _is_below(path: str, top: str) -> bool:
    return "/.." not in path and (top in ("/", path) or path.startswith(f"{top}/"))


def _mounts(root: Path) -> Iterator[tuple[str, str, int]]:
    """Yield where control groups with memory are mounted: the group that is shown there, the place, the version."""
    with suppress(OSError):
        for line in mount_lines(root / "proc/self/mountinfo"):
            if line.type == "cgroup2" or (line.type == "cgroup" and "memory" in line.options.split(",")):
                yield line.root, line.mountpoint, 2 if line.type == "cgroup2" else 1


def _of_version_2(folder: Path, name: str, swap_kib: int, *, high: bool) -> Bound | None:
    limits = [_number(folder / "memory.max"), _number(folder / "memory.high") if high else None]
    limit = min((each for each in limits if each is not None), default=None)
    used = _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    stat = _sizes(folder / "memory.stat")
    reclaimable = stat.get("active_file", 0) + stat.get("inactive_file", 0) + stat.get("slab_reclaimable", 0)
    swap_limit, swap_used = _number(folder / "memory.swap.max"), _number(folder / "memory.swap.current") or 0
    swap = swap_kib if swap_limit is None else min(swap_kib, max(0, swap_limit - swap_used) // _KIB)
    free = max(0, limit - used + reclaimable) // _KIB
    return Bound(f"the control group {name}", limit // _KIB, min(free, limit // _KIB) + swap)


def _of_version_1(folder: Path, name: str, swap_kib: int) -> Bound | None:
    stat = _sizes(folder / "memory.stat")
    limits = [_number(folder / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
    limit = min((each for each in limits if each is not None and each < _UNLIMITED), default=None)
    used = _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    reclaimable = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    free = min(limit, max(0, limit - used + reclaimable)) // _KIB
    both_limit, both_used = (
        _number(folder / "memory.memsw.limit_in_bytes"),
        _number(folder / "memory.memsw.usage_in_bytes"),
    )
    if _number(folder / "memory.swappiness") == 0:
        swap_kib = 0
    if both_limit is not None and both_used is not None:
        swap_kib = min(swap_kib, max(0, (both_limit - both_used + reclaimable) // _KIB - free))
    return Bound(f"the control group {name}", limit // _KIB, free + swap_kib)


def _own_limits(root: Path) -> Iterator[Bound]:
    status = _sizes(root / "proc/self/status")
    for option, limit, used in (("v", resource.RLIMIT_AS, "VmSize"), ("d", resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY and used in status:
            free = max(0, soft // _KIB - status[used])
            yield Bound(f"this process (ulimit -{option})", soft // _KIB, free, _THREADS_KIB)


def _lines(file: Path) -> list[str]:
    try:
        # at newlines alone: names in the mount table may have other characters that end a line
        return file.read_text(encoding="utf-8", errors="surrogateescape").removesuffix("\n").split("\n")
    except OSError:
        return []


def _number(file: Path) -> int | None:
    """Return a number that a file holds; None if there is none, as where it says `max`."""
    lines = _lines(file)
    return int(lines[0]) if lines and re.fullmatch("[0-9]+", lines[0]) else None


def _sizes(file: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number in each line."""
    found = (re.match(r"([^\s:]+):?\s+([0-9]+)", line) for line in _lines(file))
    return {match[1]: int(match[2]) for match in found if match}
