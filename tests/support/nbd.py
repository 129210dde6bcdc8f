"""NBD servers that we did not write: nbdkit and qemu-nbd, on unix sockets, and what can be done to them."""

from __future__ import annotations

import signal
import socket as sockets
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from support.cryptsetup import LuksFiles
from support.mounts import Mounted
from support.tools import program
from support.waiting import wait_until


class Server:
    """A server that can be killed and started again, on a socket or a port. Its command line has PLACE in it."""

    def __init__(self, place: Path | int, *command: str | Path) -> None:
        self.place = place
        self.command = [str(place) if word == "PLACE" else word for word in command]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._clean_up()
        self.process = subprocess.Popen(self.command)
        wait_until(self._listens, f"{self.command[0]} listens")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.command} has ended"
        if isinstance(self.place, int):
            with sockets.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.place)) == 0
        with sockets.socket(sockets.AF_UNIX) as probe:
            return probe.connect_ex(str(self.place)) == 0

    def _clean_up(self) -> None:
        if isinstance(self.place, Path):
            self.place.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)
        self._clean_up()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._clean_up()


def qemu_nbd(file: Path, socket: Path, *options: str) -> Server:
    """Serve a file as the export `disk`."""
    return Server(
        socket, program("qemu-nbd"), "--persistent", "--shared=8", "-f", "raw", "-x", "disk", "-k", "PLACE", *options,
        file,
    )  # fmt: skip


def nbdkit(socket: Path, *words: str | Path) -> Server:
    """Serve a plugin, under filters."""
    return Server(socket, program("nbdkit"), "--foreground", "--unix", "PLACE", *words)


def nbdkit_on_a_port(*words: str | Path) -> Server:
    """Serve a plugin on a port of this machine."""
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return Server(port, program("nbdkit"), "--foreground", "--ipaddr", "127.0.0.1", "--port", "PLACE", *words)


def address(socket: Path, export: str = "") -> str:
    """Return the address of an export."""
    return f"nbd+unix:///{export}?socket={socket}"


def over_nbd(files: LuksFiles, url: str, *options: str) -> Mounted:
    """Mount a payload that is behind a server."""
    mount = Mounted(
        files.payload,
        *options,
        header=files.header,
        key_file=files.key_file,
        mountpoint=_made(files.key_file.parent / "mnt"),
    )
    mount.payload = url  # type: ignore[assignment]
    return mount


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
