"""How far long work has come, on a terminal; elsewhere nothing is shown."""

from __future__ import annotations

import sys
import time
from typing import Self

from lukshdrfs.cli.logs import printable

_INTERVAL_S = 0.2
_WIDTH = 24


class Progress:
    """A line that is written again and again, and gone at the end."""

    def __init__(self, what: str, total: int) -> None:
        """Take what is done, and how many bytes there are to do."""
        self._what = printable(what)
        self._total = max(1, total)
        self._shown = sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start

    def show(self, done: int) -> None:
        """Say how many bytes are done, if it is time to say so."""
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + _INTERVAL_S
        share = min(1.0, done / self._total)
        rate = done / max(1e-9, now - self._start)
        left = (self._total - done) / rate if rate else 0
        bar = ("=" * round(share * _WIDTH)).ljust(_WIDTH)
        text = f"{self._what} [{bar}] {share:4.0%}, {rate / (1 << 20):.0f} MiB/s, {left:.0f} s left"
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
