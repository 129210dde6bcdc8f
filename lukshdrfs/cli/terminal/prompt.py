"""
A question on a terminal: without echo, and whatever stops or ends us meanwhile leaves the terminal as it was.

The model is readpassphrase(3), which restores the echo before a signal has its effect, and asks again after Ctrl-Z and
`fg`. Source for the rest: termios(3), the kernel's job control (signal(7), SIGTSTP, SIGTTOU).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.errors import DeviceError

CONTROLLING_TERMINAL = "/dev/tty"

_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2)
_STANDARD_INPUT, _STANDARD_ERROR = 0, 2


@contextlib.contextmanager
def asking(prompt: str, *, standard_input: bool) -> Iterator[int]:
    """
    Show a prompt and yield the descriptor that the answer is to be read from, with echo off until the end.

    The terminal is that of standard input; where that has something else to bring, the one that controls the process,
    as for ssh(1). Raises DeviceError if there is none, or it cannot be used.
    """
    with contextlib.ExitStack() as stack:
        if standard_input:
            descriptor = _STANDARD_INPUT
        else:
            descriptor = _open_terminal()
            stack.callback(os.close, descriptor)
        question = _Question(prompt, descriptor)
        try:
            question.begin()
            yield descriptor
        finally:
            question.end()


def has_terminal() -> bool:
    """Whether some terminal controls this process."""
    try:
        os.close(_open_terminal())
    except DeviceError:
        return False
    return True


def _open_terminal() -> int:
    try:
        return os.open(CONTROLLING_TERMINAL, os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        raise DeviceError(f"there is no terminal to ask on ({CONTROLLING_TERMINAL}: {error.strerror})") from None


class _Question:
    """The terminal while somebody is asked."""

    def __init__(self, prompt: str, descriptor: int) -> None:
        self._prompt = printable(prompt).encode(sys.stderr.encoding or "ascii", "backslashreplace")
        self._descriptor = descriptor
        # a prompt in a log is seen by nobody
        self._shown_on = _STANDARD_ERROR if os.isatty(_STANDARD_ERROR) else descriptor
        self._before: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._passing_on = self._continued = False

    def begin(self) -> None:
        """Hide what is typed, and ask."""
        try:
            self._before = termios.tcgetattr(self._descriptor)
            self._listen()
            self._ask()
        except termios.error as error:
            raise DeviceError(f"the terminal cannot be used: {os.strerror(error.args[0])}") from None

    def end(self) -> None:
        """Show again what is typed, and leave the prompt's line."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # another one must not keep us from it
        try:
            if self._before is not None:
                self._restore()
                self._write(b"\n")
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # who calls us from another one has the signals
        for number in (*_ENDING, signal.SIGTSTP):
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, self._pass_on)
        if signal.getsignal(signal.SIGCONT) is signal.SIG_DFL:
            self._handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._ask_again)

    def _ask(self) -> None:
        assert self._before is not None
        quiet = list(self._before)
        quiet[3] &= ~termios.ECHO
        self._set(quiet)
        self._write(self._prompt)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Let a signal have its usual effect, on a terminal that is as it was. If we go on after it, ask again."""
        self._passing_on, self._continued = True, False
        self._restore()
        if not self._continued:  # else the shell had the terminal already, and we have been stopped for touching it
            handler = signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            signal.signal(number, handler)
        self._passing_on = False
        self._ask_again()

    def _ask_again(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """After a pause, in which a shell may have changed the terminal. In the background, this stops us again."""
        self._continued = True
        if self._passing_on:
            return
        with contextlib.suppress(termios.error):
            self._ask()

    def _restore(self) -> None:
        assert self._before is not None
        with contextlib.suppress(termios.error):  # the terminal is gone
            self._set(self._before)

    def _set(self, attributes: list[Any]) -> None:
        """Set the terminal's attributes; what was typed and not read yet is dropped."""
        while True:
            try:
                termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, attributes)
            except termios.error as error:
                if error.args[0] != errno.EINTR:  # stopped by SIGTTOU in the background, and continued
                    raise
            else:
                return

    def _write(self, data: bytes) -> None:
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # opened for reading only, or gone
            os.write(self._shown_on, data)
