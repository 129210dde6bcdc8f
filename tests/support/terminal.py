"""A terminal with a command in it, and somebody who types."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import termios
from typing import Self

from support.mounts import Argument
from support.tools import program
from support.waiting import wait_until


class Terminal:
    """A terminal of its own, with a command in it."""

    def __init__(self, *command: Argument) -> None:
        self._master, slave = os.openpty()
        self.shown = b""
        self._answered = 0
        # setsid makes the terminal the controlling one, and env has no signal ignored, as a login does: what starts the
        # tests in the background has them ignore some
        self.process = subprocess.Popen(
            [program("setsid"), "--ctty", "--wait", program("env"), "--default-signal", *command],
            stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "xterm"},  # whatever the tests themselves are started from
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def read(self) -> None:
        """Take what has been shown since."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                shown = os.read(self._master, 4096)
            except OSError:  # nobody has the other end open any more
                return
            if not shown:
                return
            self.shown += shown

    def prompted(self) -> bool:
        self.read()
        return len(self.shown) > self._answered and not self.echoes

    def prompt(self) -> None:
        """Wait for a prompt."""
        wait_until(self.prompted, "it asks for a passphrase without echo")

    def answer(self, line: bytes) -> None:
        """Wait for a prompt and type a line."""
        self.prompt()
        # the end of this line will be shown, and then the next prompt
        self._answered = len(self.shown) + len(b"\r\n")
        os.write(self._master, line + b"\n")

    def interrupt(self) -> None:
        """Wait for a prompt and type Control-C."""
        self.prompt()
        with contextlib.suppress(OSError):
            os.write(self._master, b"\x03")

    def wait(self) -> int:
        """Return the exit status; whatever is shown until then is read, lest the terminal be full."""

        def over() -> bool:
            self.read()
            return self.process.poll() is not None

        wait_until(over, "the command ends")
        self.read()
        return self.process.returncode
