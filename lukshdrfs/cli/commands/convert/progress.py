"""How far a conversion has come: a line on a terminal, or JSON for programs; and the signals that end it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from lukshdrfs.cli.terminal.progress import Progress

_INTERVAL_S = 1.0
_LOOK_AGAIN_S = 0.1
_WORDS = {"encrypt": "encrypting", "decrypt": "decrypting", "reencrypt": "reencrypting"}


class ConversionProgress:
    """Says how far it has come; speed and time left are of this run alone."""

    def __init__(self, arguments: argparse.Namespace, mode: str, size: int, before: int) -> None:
        """`before` of `size` bytes were converted when this run began."""
        self._json = arguments.progress_json
        self._device = arguments.payload
        self._size = size
        self._before = before
        self._start = time.monotonic()
        self._next = self._start + _INTERVAL_S
        self._line = Progress(f"{_WORDS[mode]} {arguments.payload}", size, before)

    def show(self, done: int) -> bool:
        """Say how many bytes are converted, if it is time to; return True."""
        if self._json:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _INTERVAL_S
                self._print(done)
        else:
            self._line.show(done)
        return True

    def finish(self, done: int) -> None:
        """Say the last that there is to say."""
        if self._json:
            self._print(done)

    def _print(self, done: int) -> None:
        """Print a line as cryptsetup has it (its cryptsetup-reencrypt(8), `--progress-json`)."""
        spent = max(1e-9, time.monotonic() - self._start)
        speed = (done - self._before) / spent
        left = (self._size - done) / speed if speed else 0
        line = {
            "device": self._device,
            "device_bytes": str(done),
            "device_size": str(self._size),
            "speed": str(round(speed)),
            "eta_ms": str(round(left * 1000)),
            "time_ms": str(round(spent * 1000)),
        }
        sys.stdout.write(f"{json.dumps(line)}\n")
        sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()


class Pace:
    """Keeps a conversion to so many bytes a second."""

    def __init__(self, rate: int | None, before: int) -> None:
        """`before` bytes were converted when this run began; without a rate, or with 0, it is as fast as it can."""
        self._rate = rate or 0
        self._before = before
        self._start = time.monotonic()

    def keep(self, done: int, ended: Callable[[], bool]) -> bool:
        """Wait until so many bytes are due; return False if it is ended meanwhile."""
        due = self._start + ((done - self._before) / self._rate if self._rate else 0)
        while (left := due - time.monotonic()) > 0 and not ended():
            time.sleep(min(left, _LOOK_AGAIN_S))
        return not ended()


@contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """Yield a list that gets the numbers of signals which ask us to end: the step at hand comes to its end first."""
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    before = {
        number: signal.signal(number, hear)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
