"""
Payloads in image formats, by QEMU's block layer: we write no image format.

`qemu-storage-daemon` opens the image and exports its content, raw, over NBD on a socket in a folder that only its user
can enter. Backing files, snapshots, locks on images, allocation: QEMU does them. A flush over NBD is a flush of the
whole chain (QEMU, nbd/server.c, `nbd_do_cmd_flush`).

Its FUSE export would be a file, which the fast lane reads and writes like any other; but it serves one request at a
time, and each takes longer (benchmarks/README.md has both).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from lukshdrfs.environment import for_children
from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError
from lukshdrfs.payload.address import unix_address

log = logging.getLogger(__name__)

ENGINE = "qemu-storage-daemon"
START_PATIENCE_S = 30.0
STOP_PATIENCE_S = 40.0
AGAIN_PATIENCE_S = 10.0
MAX_RESTARTS = 5
"""An engine that dies more often in a minute is left dead."""

_MINUTE_S = 60.0
_SAID_SIZE = 1 << 16


def create_image(name: str, image_format: str, size: int) -> None:
    """Make an image of `size` bytes with nothing in it. Raises DeviceError with qemu-img's own words."""
    _run_qemu_img(name, ["create", "-q", "-f", image_format], str(size))
    Path(name).chmod(0o600)


def _run_qemu_img(name: str, words: list[str], *after: str) -> str:
    """Return what qemu-img says of an image; `after` goes after its name. Raises DeviceError with its own words."""
    path = os.path.abspath(name)  # noqa: PTH100 - as it is, `a:b` would be a protocol to qemu-img
    command = [_program("qemu-img", "qemu-utils"), *words, "--", path, *after]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=for_children())
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise DeviceError(f"payload {name}: {said[-1] if said else 'qemu-img failed'}")
    return done.stdout


def _is_strangers(name: str) -> bool:
    """Whether we are root, and the image is somebody else's, who may have put anything into it."""
    try:
        return os.geteuid() == 0 and Path(name).stat().st_uid != 0
    except OSError:
        return False  # opening it says what is wrong


def _check_names_no_other(name: str, image_format: str) -> None:
    """
    Raise DeviceError if an image names other files as parts of it: root would open them for the image's owner.

    Who made the image knows the volume's key, and can tell from the plaintext what was in the file.
    """
    found = json.loads(_run_qemu_img(name, ["info", "-U", "--output=json", "-f", image_format]))
    other = found.get("backing-filename") or found.get("format-specific", {}).get("data", {}).get("data-file")
    if other:
        raise DeviceError(
            f"payload {name} belongs to another user and names {other!r} as a part of it, which is not opened as root; "
            "mount it as that user, or make it root's"
        )


def _program(name: str, package: str) -> str:
    folders = [os.environ.get("LUKSHDRFS_QEMU", ""), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(filter(None, folders)))
    if found is None:
        raise DeviceError(f"{name} is not installed, by which images are opened; install {package}")
    return found


_UNLESS_ORPHANED = 'test "$PPID" = "$0" && exec "$@"'
"""Whoever was killed before the kernel knew that it is to tell the engine of that must not leave it behind."""


class Engine:
    """A running engine. Close it when nothing is written any more."""

    def __init__(self, name: str, image_format: str, *, read_only: bool) -> None:
        """
        Start the engine and wait until it serves.

        Raises DeviceError with the engine's own words if it cannot open the image, InUse if somebody else has it.
        """
        self._name = name
        program, self._setpriv = _program(ENGINE, "qemu-system-common"), _program("setpriv", "util-linux")
        alone = _is_strangers(name)
        if alone:
            _check_names_no_other(name, image_format)
        self._folder = _new_folder()
        self._socket = self._folder / "socket"
        self.address = unix_address(str(self._socket), "payload")
        self._fixed = [
            program,
            "--nbd-server", json.dumps({"addr": {"type": "unix", "path": str(self._socket)}, "max-connections": 0}),
            "--export", json.dumps({
                "type": "nbd", "id": "export", "node-name": "payload", "name": "payload", "writable": not read_only,
            }),
        ]  # fmt: skip
        # io_uring reads what is cached without another thread, twice as fast; not every build and kernel has it
        self._nodes = [
            json.dumps(_node(name, image_format, read_only=read_only, aio=aio, alone=alone))
            for aio in ("io_uring", "threads")
        ]
        self._said = os.memfd_create("stderr", os.MFD_CLOEXEC)  # a pipe that nobody reads would fill up
        self._ending = False
        self._lifecycle = threading.Lock()  # held while it is started again, or told to end
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        try:
            self._start_with(self._nodes[0])
        except DeviceError as error:
            if len(self._nodes) == 1 or "io_uring" not in str(error):
                raise
            del self._nodes[0]
            self._start_with(self._nodes[0])

    def _start_with(self, node: str) -> None:
        os.ftruncate(self._said, 0)
        os.lseek(self._said, 0, os.SEEK_SET)
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            # it ends with us, however that comes; not by Python in the child, for other threads may hold its locks
            [self._setpriv, "--pdeathsig", "TERM", "/bin/sh", "-c", _UNLESS_ORPHANED, str(os.getpid()),
             self._fixed[0], "--blockdev", node, *self._fixed[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            cwd="/",
            env=for_children(),
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None:
                raise self._failure()
            if time.monotonic() > deadline:
                raise DeviceError(f"payload {self._name}: {ENGINE} does not get ready")
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(os.fspath(self._socket))
            except OSError:
                return False
            return True

    def _failure(self) -> LukshdrfsError:
        said = os.pread(self._said, _SAID_SIZE, 0).decode("utf-8", "replace").strip().splitlines()
        reason = re.sub(r"^\S*qemu-storage-daemon: (--\w+ .*?: )?", "", said[0] if said else "it ended")
        if "lock" in reason:
            return InUse(f"payload {self._name} is in use by another program: {reason}")
        return DeviceError(f"payload {self._name}: {reason}")

    def keep_running(self) -> None:
        """Start the engine again whenever it dies, until `close`: its client has what it had not flushed."""
        # a thread of its own, for the kernel takes the end of a thread that has started a process for its parent's
        threading.Thread(target=self._keep, name="engine", daemon=True).start()

    def _keep(self) -> None:
        ends: list[float] = []
        while True:
            self._process.wait()
            ends = [*(end for end in ends if time.monotonic() - end < _MINUTE_S), time.monotonic()]
            with self._lifecycle:
                if self._ending:
                    return
                log.error("payload %s: %s ended: %s", self._name, ENGINE, self._failure())
            if len(ends) > MAX_RESTARTS or not self._start_again():
                return

    def _start_again(self) -> bool:
        """Try for a while: what the kernel still does for a process that has ended may keep the image locked."""
        deadline = time.monotonic() + AGAIN_PATIENCE_S
        while True:
            with self._lifecycle:
                if self._ending:
                    return False
                try:
                    self._start()
                except (LukshdrfsError, OSError) as error:
                    failure = error
                else:
                    return True
            if time.monotonic() > deadline:
                log.error("payload %s: %s cannot be started again: %s", self._name, ENGINE, failure)
                return False
            time.sleep(0.1)

    def close(self) -> None:
        """End the engine, which flushes first, and remove its folder. May be called again."""
        with self._lifecycle:
            self._ending = True
            process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                log.error("payload %s: %s does not end; it is killed", self._name, ENGINE)  # noqa: TRY400
                process.kill()
                process.wait()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1
        with contextlib.suppress(OSError):
            self._socket.unlink(missing_ok=True)
            self._folder.rmdir()


def _node(name: str, image_format: str, *, read_only: bool, aio: str, alone: bool) -> dict[str, object]:
    """Return the block node for an image, in the words of QEMU's QAPI (`BlockdevOptions`); `alone`: no backing file."""
    driver = "host_device" if Path(name).is_block_device() else "file"
    path = os.path.abspath(name)  # noqa: PTH100 - the engine has another working directory, and opens it as it is
    protocol = {"driver": driver, "filename": path, "read-only": read_only, "aio": aio}
    node = {"driver": image_format, "node-name": "payload", "read-only": read_only, "file": protocol}
    return {**node, "backing": None} if alone else node


def _new_folder() -> Path:
    """Return a new folder that only we can enter; those of our processes that were killed are removed."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    for folder in base.glob("lukshdrfs-*-*"):
        owner = folder.name.split("-")[1]
        with contextlib.suppress(OSError):
            if owner.isdecimal() and folder.stat().st_uid == os.geteuid() and not Path(f"/proc/{owner}").exists():
                (folder / "socket").unlink(missing_ok=True)
                folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=f"lukshdrfs-{os.getpid()}-", dir=base))
