"""The real program in a subprocess: run it, mount with it, and be sure that nothing is left of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.processes import alive, kill, wait_gone
from support.tools import program, require

LUKSHDRFS = Path(sys.executable).with_name("lukshdrfs")
"""The installed program, beside the Python that runs the tests."""

MOUNT_HELPER = Path(sys.executable).with_name("mount.lukshdrfs")

Argument = str | os.PathLike[str]

_data_path: list[str] = []


@contextlib.contextmanager
def all_over(data_path: str) -> Iterator[None]:
    """Have every mount that names no data path take this one."""
    before = list(_data_path)
    _data_path[:] = ["--data-path", data_path]
    try:
        yield
    finally:
        _data_path[:] = before


def _on_data_path(arguments: Sequence[Argument]) -> list[Argument]:
    if arguments[:1] != ("mount",) or "--data-path" in arguments:
        return [*arguments]
    return ["mount", *_data_path, *arguments[1:]]


def lukshdrfs(
    *arguments: Argument, stdin: bytes | None = None, command: Sequence[Argument] = (), timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """
    Run the program to its end, or until it has gone to the background.

    Its output is read to the end, so a daemon that keeps its caller's pipes open runs into the timeout.
    `command` replaces the program, or puts another one in front of it.
    """
    done = subprocess.run(
        [*(command or [LUKSHDRFS]), *_on_data_path(arguments)],
        input=stdin if stdin is not None else b"",
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def without_override() -> list[Argument]:
    """Return a `command` that runs the program as an owner to whom a file's mode matters, which it does not to root."""
    if os.geteuid() != 0:
        return [LUKSHDRFS]
    require(["setpriv"])
    return [
        program("setpriv"), "--bounding-set=-dac_override,-dac_read_search",
        "--inh-caps=-dac_override,-dac_read_search", LUKSHDRFS,
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MountEntry:
    """A line of /proc/self/mountinfo."""

    mountpoint: Path
    kind: str
    source: str
    options: frozenset[str]


def mount_table() -> list[MountEntry]:
    """Return what is mounted, the latest mount last."""
    entries = []
    # names are bytes, and may have what else would end a line in them
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields, (kind, source, _) = before.split(" "), after.split(" ", maxsplit=2)
        options = frozenset(fields[5].split(","))
        # the kernel writes blanks and backslashes in octal
        where = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), os.fsencode(fields[4]))
        entries.append(MountEntry(Path(os.fsdecode(where)), kind, source, options))
    return entries


def fuse_mounts(folder: Path) -> list[Path]:
    """Return the mountpoints of FUSE file systems at or below `folder`, innermost first."""
    found = [
        entry.mountpoint
        for entry in mount_table()
        if entry.kind.startswith("fuse") and entry.mountpoint.is_relative_to(folder)
    ]
    return found[::-1]


def is_mounted(mountpoint: Path) -> bool:
    """Tell whether a FUSE file system is mounted there. Asks the kernel's table only, so it never hangs."""
    return mountpoint in fuse_mounts(mountpoint)


def fusermount(mountpoint: Path, *, lazily: bool = False) -> None:
    """Unmount as a user does."""
    options = ["-u", "-z"] if lazily else ["-u"]
    subprocess.run([program("fusermount3"), *options, mountpoint], check=True, capture_output=True)


def read_attribute(path: Path, name: str) -> str:
    """Return one of our extended attributes."""
    return os.getxattr(path, f"user.lukshdrfs.{name}").decode()


class Mounted:
    """A payload that the real program has mounted, unmounted again when the block ends."""

    def __init__(
        self,
        payload: Path,
        *options: Argument,
        header: Path | None = None,
        key_file: Path | None = None,
        mountpoint: Path | None = None,
        name: str = "image",
        command: Sequence[Argument] = (),
    ) -> None:
        self.payload = payload
        self._command = command
        self.mountpoint = mountpoint or payload.parent / "mnt"
        self.image = self.mountpoint / name if mountpoint is None or mountpoint.is_dir() else mountpoint
        self._arguments: list[Argument] = [*options]
        if header is not None:
            self._arguments += ["--header", header]
        if key_file is not None:
            self._arguments += ["--key-file", key_file]
        self.pid = 0

    def __enter__(self) -> Self:
        if not self.mountpoint.exists():
            self.mountpoint.mkdir()
        done = lukshdrfs("mount", *self._arguments, self.payload, self.mountpoint, command=self._command)
        assert done.returncode == 0, f"mount failed with {done.returncode}: {done.stderr}"
        self.pid = int(read_attribute(self.image, "pid"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.unmount()
            return
        # the test has failed already: leave nothing behind, whatever state the mount is in
        with contextlib.suppress(subprocess.CalledProcessError):
            fusermount(self.mountpoint, lazily=True)
        if alive(self.pid):
            kill(self.pid)

    def unmount(self) -> None:
        """Unmount if it is still mounted, and wait until the daemon has ended."""
        if is_mounted(self.mountpoint):
            fusermount(self.mountpoint)
        wait_gone(self.pid)


@contextlib.contextmanager
def foreground(*arguments: Argument, mountpoint: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program in the foreground, and see to it that neither it nor its mount outlives the block."""
    with subprocess.Popen(
        [LUKSHDRFS, *_on_data_path(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            if is_mounted(mountpoint):
                fusermount(mountpoint, lazily=True)
            if process.poll() is None:
                process.kill()
