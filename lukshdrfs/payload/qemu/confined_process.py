"""
Programs that work on an image for us, and can open nothing but it.

What an image says is its maker's word. A program that reads it could be told to open another file, or a server, with
our rights; so it is given descriptors, and the kernel refuses it every other file but libraries, and every connection
(confined_process.c). As root it runs as the owner of the image, without capabilities.
"""

from __future__ import annotations

import enum
import fcntl
import logging
import os
import select
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from lukshdrfs.environment import for_children
from lukshdrfs.errors import DeviceError
from lukshdrfs.native import ffi, lib

log = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
"""The number that the program knows the first of its descriptors by."""

SAID_SIZE = 1 << 16
"""Bytes of what a program says that are kept, its first ones."""

KILL_PATIENCE_S = 5.0
"""What is killed and does not end waits for a storage in the kernel; nobody waits for it longer."""


class Access(enum.IntEnum):
    """What a program may do when it opens the file of a descriptor once more, by /proc/self/fd."""

    NONE = lib.CONFINED_NO_ACCESS
    READS = lib.CONFINED_READS
    WRITES = lib.CONFINED_WRITES


def restricts_files() -> bool:
    """Whether this kernel restricts which files a program may open (Landlock, Linux 5.13)."""
    return bool(lib.confined_process_landlock())


def find_program(name: str, package: str) -> str:
    """Return the path of one of QEMU's programs. Raises DeviceError, which says what to install."""
    folders = [os.environ.get("LUKSHDRFS_QEMU", ""), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(filter(None, folders)))
    if found is None:
        raise DeviceError(f"{name} is not installed, by which images are opened; install {package}")
    return os.path.realpath(found)


class ConfinedProcess:
    """A program that was started. It ends with us."""

    def __init__(
        self,
        program: str,
        words: Sequence[str],
        descriptors: Sequence[tuple[int, Access]],
        *,
        owner: tuple[int, int],
        reads_all: bool = False,
    ) -> None:
        """
        Start `program` (a path) with these arguments, as the owner (uid, gid) if we are root.

        It has the descriptors as 3, 4, … With `reads_all`, it may read those of its files that its user may not.
        Raises DeviceError if it cannot be started, or not be confined.
        """
        self._name = Path(program).name
        self._reaped = threading.Lock()
        self._status: int | None = None
        self._said = _bounded_memory()
        try:
            self._pid = self._start(program, words, descriptors, owner, reads_all)
            self._handle = os.pidfd_open(self._pid)
        except BaseException:
            os.close(self._said)
            raise

    def _start(
        self,
        program: str,
        words: Sequence[str],
        descriptors: Sequence[tuple[int, Access]],
        owner: tuple[int, int],
        reads_all: bool,
    ) -> int:
        kept = [_strings([self._name, *words]), _strings([f"{name}={value}" for name, value in for_children().items()])]
        path = ffi.new("char[]", os.fsencode(program))
        numbers = ffi.new("int[]", [number for number, _ in descriptors])
        accesses = ffi.new("int[]", [int(access) for _, access in descriptors])
        user, group = owner if os.geteuid() == 0 else (-1, -1)
        wanted = ffi.new("struct confined_process *", {
            "program": path, "arguments": kept[0][0], "environment": kept[1][0], "error_output": self._said,
            "descriptor_count": len(descriptors), "descriptors": numbers, "accesses": accesses,
            "user": user, "group": group, "reads_all": reads_all,
        })  # fmt: skip
        step = ffi.new("char **")
        pid = int(lib.confined_process_start(wanted, step))
        if pid < 0:
            doing = ffi.string(step[0]).decode()
            raise DeviceError(f"{program} cannot be run ({doing}): {os.strerror(-pid)}")
        return pid

    @property
    def handle(self) -> int:
        """A descriptor that can be read when the program has ended: pidfd_open(2)."""
        return self._handle

    def wait(self, patience_s: float | None = None) -> int | None:
        """Return its status (negative: the signal that ended it); None if it has not ended after so many seconds."""
        with self._reaped:
            if self._status is not None:
                return self._status
        ended = select.poll()
        ended.register(self._handle, select.POLLIN)
        if not ended.poll(None if patience_s is None else patience_s * 1000):
            return None
        with self._reaped:
            if self._status is None:
                self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            return self._status

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and wait for a moment; what the kernel does not let go of is left behind."""
        self._signal(signal.SIGKILL)
        if self.wait(KILL_PATIENCE_S) is None:
            log.error("%s (process %d) does not end: it waits for its storage in the kernel", self._name, self._pid)

    def _signal(self, number: int) -> None:
        if self._status is None:
            try:
                signal.pidfd_send_signal(self._handle, number)
            except ProcessLookupError:
                return

    def said(self) -> list[str]:
        """Return the lines that it has said on its standard error, the first `SAID_SIZE` bytes of them."""
        text = os.pread(self._said, SAID_SIZE, 0).split(b"\0", 1)[0].decode("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()]

    def end_words(self) -> str:
        """Return how it has ended."""
        status = self.wait(0)
        if status is None:
            return "it runs"
        return f"it ended with status {status}" if status >= 0 else f"it was killed ({signal.strsignal(-status)})"

    def close(self) -> None:
        """Let go of a program that has ended. May be called again."""
        if self._status is None:
            return  # somebody still waits for it
        for name in ("_handle", "_said"):
            descriptor = getattr(self, name)
            setattr(self, name, -1)
            if descriptor >= 0:
                os.close(descriptor)


def _bounded_memory() -> int:
    """Return a file in memory that takes `SAID_SIZE` bytes: a pipe would fill up, and a file grow."""
    memory = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, SAID_SIZE)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return memory


def _strings(words: Sequence[str]) -> tuple[object, list[object]]:
    """Return an array as execve(2) takes it, and what must be kept as long as it is used."""
    kept = [ffi.new("char[]", os.fsencode(word)) for word in words]
    return ffi.new("char *[]", [*kept, ffi.NULL]), kept


def open_as(owner: tuple[int, int], groups: Sequence[int], name: str, flags: int) -> int:
    """
    Open a file as root with the rights of another user (uid, gid) and no more. Raises OSError.

    In a thread of its own, which is that user's from then on as far as files are concerned.
    """
    path, numbers, answer = ffi.new("char[]", os.fsencode(name)), ffi.new("unsigned[]", list(groups)), []

    def work() -> None:
        answer.append(int(lib.confined_open(path, flags | os.O_CLOEXEC, *owner, len(groups), numbers)))

    thread = threading.Thread(target=work, name="open")
    thread.start()
    thread.join()
    if answer[0] < 0:
        raise OSError(-answer[0], os.strerror(-answer[0]), name)
    return answer[0]
