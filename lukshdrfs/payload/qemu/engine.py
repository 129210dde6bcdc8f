"""
Payloads in image formats, by QEMU's block layer: we write no image format.

`qemu-storage-daemon` exports the image's content, raw, over NBD. Snapshots, locks on images, allocation: QEMU does
them. A flush over NBD is a flush of the whole chain (QEMU, nbd/server.c, `nbd_do_cmd_flush`). It gets descriptors of
the image and of a socket, and can open nothing else (`confined_process`), whatever the image names.

Its FUSE export would be a file, which the fast lane reads and writes like any other; but it serves one request at a
time, and each takes longer (benchmarks/README.md has both).
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError
from lukshdrfs.payload.nbd.address import unix_address
from lukshdrfs.payload.qemu.backing_chain import ForeignParts, Layer, check_header, close_backing_files, open_chain
from lukshdrfs.payload.qemu.confined_process import (
    FIRST_DESCRIPTOR,
    Access,
    ConfinedProcess,
    find_program,
    restricts_files,
)
from lukshdrfs.payload.qemu.image_file import ImageFile
from lukshdrfs.payload.qemu.nameless_socket import NamelessSocket

log = logging.getLogger(__name__)

ENGINE = "qemu-storage-daemon"
START_PATIENCE_S = 30.0
STOP_PATIENCE_S = 40.0
AGAIN_PATIENCE_S = 10.0
MAX_RESTARTS = 5
"""An engine that dies more often in a minute is left dead."""

_MINUTE_S = 60.0
_PROBE_S = 0.1
_GREETING = b"NBDMAGIC"
_EXPORT = "payload"
_SOCKET_DESCRIPTOR = FIRST_DESCRIPTOR
_LONGEST_DESCRIPTION = 1024


class Engine:
    """A running engine. Close it when nothing is written any more."""

    def __init__(self, image: ImageFile, image_format: str, *, backing_chain: bool = False) -> None:
        """
        Start the engine on an image, which is its own from then on, and wait until it serves.

        `backing_chain` allows the image to have backing files. Raises DeviceError with the engine's own words if it
        cannot open the image, InUse if somebody else has it.
        """
        self._name = image.name
        self._image = image
        self._chain: list[Layer] = []
        self._process: ConfinedProcess | None = None
        self._ending = threading.Event()
        self._lifecycle = threading.Lock()  # held while it is started again, or told to end
        self._socket = NamelessSocket()
        self.address = unix_address(self._socket.path, _EXPORT)
        # io_uring reads what is cached without another thread, twice as fast; not every build and kernel has it
        self._ways = ["threads"] if os.geteuid() == 0 and image.owner[0] != 0 else ["io_uring", "threads"]
        try:
            self._program = find_program(ENGINE, "qemu-system-common")
            if not restricts_files():
                log.warning("payload %s: this kernel has no Landlock, which keeps QEMU from other files", image.name)
            self._chain = open_chain(image, image_format, backing_chain=backing_chain)
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def image(self) -> ImageFile:
        """The image, as it is held here."""
        return self._image

    def _start(self) -> None:
        try:
            self._start_with(self._ways[0])
        except DeviceError as error:
            if len(self._ways) == 1 or "io_uring" not in str(error):
                raise
            del self._ways[0]
            self._start_with(self._ways[0])

    def _start_with(self, aio: str) -> None:
        check_header(self._chain)
        options = self._options(aio)
        with self._socket.listen() as listener:
            files = [(layer.image.descriptor, layer.image.access) for layer in self._chain]
            process = ConfinedProcess(
                self._program,
                [word for option in options for word in option],
                [(listener.fileno(), Access.NONE), *files],
                owner=self._image.owner,
                reads_all=len(self._chain) > 1,
            )
        if self._process:
            self._process.close()
        self._process = process
        try:
            self._wait_until_it_serves(process)
        except BaseException:
            process.kill()
            raise

    def _options(self, aio: str) -> list[tuple[str, str]]:
        """Return the engine's command line, in the words of QEMU's QAPI. No name in it is opened."""
        described = self._image.path.encode("utf-8", "replace").decode()[
            :_LONGEST_DESCRIPTION
        ]  # `ps` shows whose engine it is
        return [
            ("--blockdev", _json(_node(self._chain, aio))),
            ("--nbd-server", _json({"addr": {"type": "fd", "str": str(_SOCKET_DESCRIPTOR)}, "max-connections": 0})),
            ("--export", _json({
                "type": "nbd", "id": "export", "node-name": _EXPORT, "name": _EXPORT, "description": described,
                "writable": not self._image.read_only,
            })),
        ]  # fmt: skip

    def _wait_until_it_serves(self, process: ConfinedProcess) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while not self._answers(process):
            if process.wait(0) is not None:
                raise self._failure(process)
            if self._ending.is_set():
                raise DeviceError(f"payload {self._name}: it is closed")
            if time.monotonic() > deadline:
                raise DeviceError(f"payload {self._name}: {ENGINE} does not get ready")

    def _answers(self, process: ConfinedProcess) -> bool:
        """Whether a server greets us, within a moment; connecting says nothing, for the kernel takes connections."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_S)
            try:
                probe.connect(self._socket.path)
                some = select.poll()
                some.register(probe, select.POLLIN)
                some.register(process.handle, select.POLLIN)
                some.poll(_PROBE_S * 1000)
                return probe.recv(len(_GREETING), socket.MSG_DONTWAIT) == _GREETING
            except OSError:
                return False

    def _failure(self, process: ConfinedProcess) -> LukshdrfsError:
        reason = self._reason(process, 0)
        if re.search('Failed to (get ".*" lock|lock byte)', reason):
            return InUse(f"payload {self._name} is in use by another program: {reason}")
        return DeviceError(f"payload {self._name}: {reason}")

    def _reason(self, process: ConfinedProcess, line: int) -> str:
        """Return what an engine that has ended has said, in its own words, but with the names of what it had open."""
        said = process.said()
        errors = [words for words in said if words.startswith(f"{ENGINE}: ") and "warning: " not in words]
        if not said:
            return process.end_words()
        reason = (errors or said)[line].removeprefix(f"{ENGINE}: ")
        for aio in ("io_uring", "threads"):
            for option, value in self._options(aio):
                reason = reason.removeprefix(f"{option} {value}: ")
        for number, layer in enumerate(self._chain, start=_SOCKET_DESCRIPTOR + 1):
            reason = layer.image.name.join(re.split(rf"/proc/self/fd/{number}\b", reason))
        return reason

    def keep_running(self, given_up: Callable[[], None]) -> None:
        """
        Start the engine again whenever it dies, until `close`: its client has what it had not flushed.

        `given_up` is called, in another thread, if that cannot be.
        """
        # a thread of its own, for the kernel takes the end of a thread that has started a process for its parent's
        threading.Thread(target=self._keep, args=(given_up,), name="engine", daemon=True).start()

    def _keep(self, given_up: Callable[[], None]) -> None:
        ends: list[float] = []
        while True:
            process = self._process
            if process is None:
                return
            process.wait()
            ends = [*(end for end in ends if time.monotonic() - end < _MINUTE_S), time.monotonic()]
            with self._lifecycle:
                if self._ending.is_set():
                    return
                log.error("payload %s: %s has ended: %s", self._name, ENGINE, self._reason(process, -1))
            if len(ends) > MAX_RESTARTS or not self._start_again():
                if not self._ending.is_set():
                    given_up()
                return

    def _start_again(self) -> bool:
        """Try for a while: what the kernel still does for a process that has ended may keep the image locked."""
        deadline = time.monotonic() + AGAIN_PATIENCE_S
        while True:
            with self._lifecycle:
                if self._ending.is_set():
                    return False
                try:
                    self._start()
                except (LukshdrfsError, OSError) as error:
                    failure = error
                else:
                    return True
            if isinstance(failure, ForeignParts) or time.monotonic() > deadline:
                log.error("payload %s: %s cannot be started again: %s", self._name, ENGINE, failure)
                return False
            self._ending.wait(_PROBE_S)

    def close(self) -> None:
        """End the engine, which flushes first, and let go of the image. May be called again."""
        self._ending.set()
        with self._lifecycle:  # whoever starts it hears of the end within a moment
            process = self._process
        if process is not None:
            process.terminate()
            if process.wait(STOP_PATIENCE_S) is None:
                log.error("payload %s: %s does not end; it is killed", self._name, ENGINE)
                process.kill()
            process.close()
        self._socket.close()
        close_backing_files(self._chain)
        self._image.close()


def _node(chain: Sequence[Layer], aio: str) -> dict[str, object]:
    """Return the block nodes of an image and its backing files (`BlockdevOptions`), which are in the engine's hands."""
    node: dict[str, object] | None = None
    for number, layer in reversed([*enumerate(chain, start=_SOCKET_DESCRIPTOR + 1)]):
        common = {"read-only": layer.image.read_only}
        driver = "host_device" if layer.image.is_block_device else "file"
        file = {"driver": driver, "filename": f"/proc/self/fd/{number}", "aio": aio, **common}
        below = {} if layer.image_format == "raw" else {"backing": node}
        node = {"driver": layer.image_format, "file": file, **common, **below}
    return {**(node or {}), "node-name": _EXPORT}


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)
