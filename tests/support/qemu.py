"""QEMU's tools: LUKS1 images made, read and written by them, and images held open by them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from support.tools import program
from support.waiting import wait_until


def luks_secret(key_file: Path) -> list[str]:
    """Return the options that hand a key file to one of QEMU's programs, as the secret `s`."""
    return ["--object", f"secret,id=s,file={key_file}"]


def attached(image: Path) -> str:
    """Return the image options of a LUKS image with its header inside."""
    return f"driver=luks,key-secret=s,file.driver=file,file.filename={image}"


def detached(header: Path, payload: Path) -> str:
    """Return the image options of a LUKS image with its header elsewhere (QEMU 9 and newer)."""
    return (
        f"driver=luks,key-secret=s,header.driver=file,header.filename={header},file.driver=file,file.filename={payload}"
    )


def run(*command: str | Path) -> str:
    """Run one of QEMU's programs, which must succeed, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout


def run_timed(*command: str | Path) -> None:
    """
    Run qemu-img where it times itself to choose a number of iterations.

    It gives up on a machine whose clock of CPU time is rough, or that is busy: it is asked again.
    """
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def held_open(image: Path) -> Iterator[None]:
    """Have a QEMU process open `image` for writing, with QEMU's locks on it."""
    inode = f":{image.stat().st_ino} "
    with subprocess.Popen(
        [program("qemu-io"), "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: inode in Path("/proc/locks").read_text(), "QEMU locks the image")
        try:
            yield
        finally:
            process.communicate(b"quit\n")


class Machine:
    """A QEMU without a guest: its drives are used through the monitor."""

    def __init__(self, *options: str) -> None:
        self.said = ""
        self._process = subprocess.Popen(
            [
                program("qemu-system-x86_64"), "-machine", "none", "-accel", "tcg", "-nodefaults",
                "-display", "none", "-qmp", "stdio", *options,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        assert json.loads(self._pipe(self._process.stdout).readline())["QMP"]
        self.execute("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._process.poll() is None:
                self.execute("quit")
                self._process.wait(20)
        finally:
            self._process.kill()
            self._process.communicate()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def execute(self, command: str, **arguments: str) -> Any:
        """Run a command of the machine protocol and return its answer."""
        stdin = self._pipe(self._process.stdin)
        stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        stdin.flush()
        for line in self._pipe(self._process.stdout):
            if not line.startswith("{"):  # qemu-io's own words go to the same place
                self.said += line
                continue
            answer = json.loads(line)
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]
        raise AssertionError(f"QEMU ended during {command}")

    def drive(self, name: str, command: str) -> str:
        """Run one of qemu-io's commands on a drive and return what it says."""
        self.said = ""
        answer = self.execute("human-monitor-command", **{"command-line": f'qemu-io {name} "{command}"'})
        return f"{self.said}{answer}"
