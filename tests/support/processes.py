"""Processes as /proc shows them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

from support.waiting import wait_until


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and that nobody has collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def wait_gone(pid: int) -> None:
    """Wait until a process has ended."""
    wait_until(lambda: not alive(pid), f"process {pid} ends")


def kill(pid: int) -> None:
    """End a process for good."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def commands() -> dict[int, list[str]]:
    """Return the arguments of every process that runs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found[int(entry.name)] = [os.fsdecode(word) for word in words if word]
    return found


def daemons(folder: Path) -> dict[int, list[str]]:
    """Return the processes of our program that work on something below `folder`."""
    return {
        pid: words
        for pid, words in commands().items()
        if any("lukshdrfs" in Path(word).name for word in words[:3]) and any(str(folder) in word for word in words)
    }


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the time that processes have worked so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_holds(pid: int, needle: bytes) -> bool:
    """Whether a process has some bytes anywhere in its memory."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if not match or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            memory.seek(start)
            with contextlib.suppress(OSError):
                if needle in memory.read(end - start):
                    return True
    return False


def has_capability(number: int) -> bool:
    """Whether this process has a capability, by its number in linux/capability.h."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


CAP_SYS_RESOURCE = 24
