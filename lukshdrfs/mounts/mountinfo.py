"""The kernel's mount table, with names as the bytes that they are. Source: proc(5), /proc/PID/mountinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class MountLine:
    """A line of the table. Names are decoded as `os.fsdecode` does, so that no byte is lost."""

    device: str
    """`major:minor`; no two mounted file systems have the same."""
    root: str
    """What of the file system is shown: a path in it."""
    mountpoint: str
    type: str
    source: str
    options: str
    """Those of the file system, separated by commas."""


def mount_lines(table: Path = TABLE) -> Iterator[MountLine]:
    """Yield the mounts of this process's mount namespace, in the order in which they were made. Raises OSError."""
    # at newlines alone: other characters that end a line may be in a name
    for line in table.read_bytes().split(b"\n"):
        fields, _, of_file_system = os.fsdecode(line).partition(" - ")
        mount, file_system = fields.split(" "), of_file_system.split(" ")
        if len(mount) < 6 or len(file_system) < 3:
            continue
        yield MountLine(
            device=mount[2],
            root=unescaped(mount[3]),
            mountpoint=unescaped(mount[4]),
            type=file_system[0],
            source=unescaped(file_system[1]),
            options=file_system[2],
        )


def unescaped(field: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline and backslash, as in /proc/swaps and others."""
    data = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(field))
    return os.fsdecode(data)
