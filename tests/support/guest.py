"""The small virtual machine that examples/guest.sh makes."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

GUEST = Path(__file__).parents[2] / "examples" / "guest.sh"

PATIENCE_FOR_SETUP = 240.0
"""Seconds for the download of a kernel, and for finding out whether KVM works."""


@functools.cache
def why_missing() -> str:
    """Make the guest if it is not there yet; return why it cannot be had, or nothing."""
    try:
        done = subprocess.run(
            ["bash", GUEST, "setup"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_FOR_SETUP,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the guest was not made in {PATIENCE_FOR_SETUP:.0f} s"
    return "" if done.returncode == 0 else reason(done)


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return why guest.sh failed: its last line, for what apt and others have to say comes before."""
    return (done.stderr.strip().splitlines() or [f"guest.sh ended with {done.returncode}"])[-1]
