"""How far long work has come, on a terminal; elsewhere nothing is shown."""

from __future__ import annotations

import os
import sys
import time
from typing import Self

from lukshdrfs.cli.terminal.display_width import fitted, width
from lukshdrfs.cli.terminal.logs import printable

_INTERVAL_S = 0.2
_BAR, _SMALLEST_BAR = 24, 8
_USUAL_COLUMNS = 80
_DUMB = "dumb"
"""A terminal that cannot go back in a line: each drawing would be one more line."""


class Progress:
    """A line that is written again and again, and gone at the end."""

    def __init__(self, what: str, total: int, before: int = 0) -> None:
        """Take what is done, and how many bytes there are to do; `before` of them were done by an earlier run."""
        self._before = before
        self._what = printable(what)
        self._total = max(1, total)
        self._shown = sys.stderr.isatty() and os.environ.get("TERM") != _DUMB
        self._start = time.monotonic()
        self._next = self._start

    def show(self, done: int) -> None:
        """Say how many bytes are done, if it is time to say so."""
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + _INTERVAL_S
        share = min(1.0, done / self._total)
        rate = (done - self._before) / max(1e-9, now - self._start)
        left = duration((self._total - done) / rate) if rate else ""
        text = progress_line(self._what, share, f"{rate / (1 << 20):.0f} MiB/s", left, _columns() - 1)
        encoding = sys.stderr.encoding or "ascii"
        sys.stderr.write(f"\r\033[K{text.encode(encoding, 'replace').decode(encoding)}")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def _columns() -> int:
    """Return how wide the terminal is now: it may have been made wider or narrower since the last look."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_COLUMNS
    except OSError:
        return _USUAL_COLUMNS


def progress_line(what: str, share: float, rate: str, left: str, columns: int) -> str:
    """
    Return the line for so many columns of a terminal: what matters least becomes shorter first, or is left out.

    That is the name, then the bar, then the time left, the rate, the name altogether.
    """
    percent = f"{share:4.0%}"
    time_left = f", {left} left" if left else ""
    for bar, details in (
        (_BAR, f", {rate}{time_left}"),
        (_SMALLEST_BAR, f", {rate}{time_left}"),
        (0, f", {rate}{time_left}"),
        (0, time_left),
        (0, ""),
    ):
        shown = f" [{('=' * round(share * bar)).ljust(bar)}] {percent}{details}" if bar else f" {percent}{details}"
        room = columns - width(shown)
        if room >= min(width(what), _least_of(columns)):
            return f"{fitted(what, room)}{shown}"
    return percent.strip()[: max(0, columns)]


def _least_of(columns: int) -> int:
    """Return how much of a name is to be seen before other things are left out for it."""
    return columns // 4


def duration(seconds: float) -> str:
    """Return a time for people: `42 s`, `3:07 min`, `2:05 h`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"
