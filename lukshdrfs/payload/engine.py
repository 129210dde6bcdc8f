"""
Payloads that are no plain files: qcow2 images and what lies behind the network, by QEMU's block layer.

We write no image format and no network protocol. `qemu-storage-daemon` opens what the user names and exports its
content, raw, as one file over FUSE, below a folder that only its user can enter. That file is a payload like any other:
the fast lane reads and writes it by its descriptor, and fdatasync of it is a flush of the whole chain below (QEMU,
block/export/fuse.c, `fuse_fsync`). Backing files, snapshots, locks on images, reconnecting to servers: QEMU does them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError, UsageError

log = logging.getLogger(__name__)

ENGINE = "qemu-storage-daemon"
START_PATIENCE_S = 30.0
STOP_PATIENCE_S = 40.0
RECONNECT_S = 30
"""How long requests wait for a server that went away, before they fail with EIO."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)

NETWORK_SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
"""What is reached by the engine; others of QEMU's are left out until they are tested here."""


def is_network(name: str) -> bool:
    """Whether a payload or header is named by a URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", name) is not None


def create_image(name: str, image_format: str, size: int) -> None:
    """Make an image of `size` bytes with nothing in it. Raises DeviceError with qemu-img's own words."""
    path = os.path.abspath(name)  # noqa: PTH100 - as it is, `a:b` would be a protocol to qemu-img
    command = [_program("qemu-img", "qemu-utils"), "create", "-q", "-f", image_format, "--", path, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise DeviceError(f"payload {name}: {said[-1] if said else 'qemu-img failed'}")
    Path(name).chmod(0o600)


def engine_program() -> str:
    """Return the engine's path. Raises DeviceError if it is not installed."""
    return _program(ENGINE, "qemu-system-common")


def _program(name: str, package: str) -> str:
    folders = [os.environ.get("LUKSHDRFS_QEMU", ""), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(filter(None, folders)))
    if found is None:
        raise DeviceError(f"{name} is not installed, by which qcow2 and network payloads are opened; install {package}")
    return found


def node_of(name: str, image_format: str, *, read_only: bool) -> dict[str, Any]:
    """
    Return the block node for a payload, in the words of QEMU's QAPI (`BlockdevOptions`).

    Raises UsageError for a URL or format that is not supported.
    """
    if image_format not in ("raw", "qcow2"):
        raise UsageError(f"payload format {image_format!r} is not supported; expected raw or qcow2")
    protocol: dict[str, Any]
    if is_network(name):
        protocol = _nbd_node(name)
    else:
        driver = "host_device" if Path(name).is_block_device() else "file"
        protocol = {"driver": driver, "filename": os.path.abspath(name)}  # noqa: PTH100 - the engine opens it
    protocol["read-only"] = read_only
    return {"driver": image_format, "node-name": "payload", "read-only": read_only, "file": protocol}


def _nbd_node(url: str) -> dict[str, Any]:
    """Return a node for `nbd://host[:port]/export` or `nbd+unix:///export?socket=PATH` (NBD's URI specification)."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in NETWORK_SCHEMES:
        raise UsageError(
            f"payload {url}: scheme {parts.scheme!r} is not supported; expected {', '.join(NETWORK_SCHEMES)}"
        )
    if parts.username or parts.password or parts.fragment:
        raise UsageError(f"payload {url}: an NBD address has no user, password or fragment")
    query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    node: dict[str, Any] = {"driver": "nbd", "reconnect-delay": RECONNECT_S}
    if export := urllib.parse.unquote(parts.path[1:]):
        node["export"] = export
    if parts.scheme.endswith("+unix"):
        if not query.get("socket") or parts.netloc:
            raise UsageError(f"payload {url}: expected nbd+unix:///EXPORT?socket=PATH")
        node["server"] = {"type": "unix", "path": os.path.abspath(query.pop("socket"))}  # noqa: PTH100
    else:
        if not parts.hostname:
            raise UsageError(f"payload {url}: it names no host")
        node["server"] = {"type": "inet", "host": parts.hostname, "port": str(parts.port or 10809)}
    if parts.scheme.startswith("nbds"):
        node["tls-creds"] = "tls"
        node["certificates"] = query.pop("tls-certificates", "")  # ours, taken out again below
        if not node["certificates"]:
            raise UsageError(f"payload {url}: ?tls-certificates=FOLDER is needed, by which the server is known")
    if query:
        raise UsageError(f"payload {url}: {next(iter(query))!r} is not a parameter that is known")
    return node


class Engine:
    """A running engine and the file that it exports. Close it when nothing is written any more."""

    def __init__(self, name: str, image_format: str, *, read_only: bool, direct: bool = False) -> None:
        """
        Start the engine and wait until the file is there.

        Raises DeviceError with the engine's own words if it cannot open the payload, InUse if somebody else has it.
        """
        self._name = name
        node = node_of(name, image_format, read_only=read_only)
        objects = _tls_objects(node["file"])
        program = engine_program()
        self._folder = _new_folder()
        self.path = self._folder / "payload"
        self.path.touch(mode=0o600)
        node["file"]["cache"] = {"direct": direct}
        self._said = os.memfd_create("stderr", os.MFD_CLOEXEC)  # a pipe that nobody reads would fill up
        self._unmounted = self.path.stat().st_dev
        command = [program, *objects, "--blockdev", json.dumps(node), "--export", json.dumps({
            "type": "fuse", "id": "export", "node-name": "payload", "mountpoint": str(self.path),
            "writable": not read_only, "allow-other": "off",
        })]  # fmt: skip
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                cwd="/",
                start_new_session=True,
                preexec_fn=functools.partial(_end_with_parent, os.getpid()),  # noqa: PLW1509 - no other thread runs yet that could hold a lock
            )
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while not self._is_mounted():
            if self._process.poll() is not None:
                raise self._failure()
            if time.monotonic() > deadline:
                raise DeviceError(f"payload {self._name}: {ENGINE} does not get ready")
            time.sleep(0.005)

    def _is_mounted(self) -> bool:
        try:
            return self.path.stat().st_dev != self._unmounted
        except OSError:  # of an engine that is gone
            return True

    def _failure(self) -> LukshdrfsError:
        said = os.pread(self._said, 1 << 16, 0).decode("utf-8", "replace").strip().splitlines()
        reason = re.sub(r"^\S*qemu-storage-daemon: (--\w+ .*?: )?", "", said[0] if said else "it ended")
        if "lock" in reason:
            return InUse(f"payload {self._name} is in use by another program: {reason}")
        return DeviceError(f"payload {self._name}: {reason}")

    @property
    def alive(self) -> bool:
        """Whether the engine still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the engine, which flushes first, and remove its folder. May be called again."""
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
        if self._is_mounted():
            _take_away(self.path)
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self._folder.rmdir()


def _end_with_parent(parent: int) -> None:
    """Have the engine end when we do, however that comes: it flushes and unmounts then."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before we could ask to be told


def _new_folder() -> Path:
    """Return a new folder that only we can enter; those of our processes that were killed are removed."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    for folder in base.glob("lukshdrfs-*-*"):
        owner = folder.name.split("-")[1]
        with contextlib.suppress(OSError):
            if owner.isdecimal() and folder.stat().st_uid == os.geteuid() and not Path(f"/proc/{owner}").exists():
                (folder / "payload").unlink(missing_ok=True)
                folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=f"lukshdrfs-{os.getpid()}-", dir=base))


def _tls_objects(protocol: dict[str, Any]) -> Iterator[str]:
    """Return the options that make the credentials which a node names."""
    if "tls-creds" not in protocol:
        return iter(())
    folder = os.path.abspath(protocol.pop("certificates"))  # noqa: PTH100 - the engine has another working directory
    creds = {"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "client", "dir": folder}
    return iter(("--object", json.dumps(creds)))


def _take_away(path: Path) -> None:
    """Unmount what a killed engine has left."""
    if os.geteuid() == 0:
        _libc.umount2(os.fsencode(path), 2)
    else:
        subprocess.run(["fusermount3", "-u", "-z", path], capture_output=True, check=False)
