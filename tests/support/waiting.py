"""Wait for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds after which a condition that has not come about never will (a busy machine is slow, not wrong)."""


def wait_until(condition: Callable[[], object], what: str, *, timeout: float = PATIENCE) -> None:
    """Return as soon as `condition()` is true; fail with `what` when it never is."""
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s in vain: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
