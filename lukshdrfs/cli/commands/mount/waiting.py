"""Waiting for the medium that a header is on."""

from __future__ import annotations

import os
import select
import sys
import time

from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.headers import source_descriptor
from lukshdrfs.payload import is_network

_LOOK_AGAIN_S = 0.5
"""Files and device nodes appear without a change of the mount table, so it is looked at from time to time, too."""


def wait_for_any(names: list[str], timeout_s: float) -> None:
    """Return when one of some files or devices is there, or the time is over. Ctrl-C ends it as any other wait."""
    if any(_is_there(name) for name in names):
        return
    if sys.stderr.isatty():
        sys.stderr.write(f"waiting {timeout_s:g} s for {printable(' or '.join(names))} (Ctrl-C gives up)\n")
    deadline = time.monotonic() + timeout_s
    mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(mounts, select.POLLPRI)
        while (left := deadline - time.monotonic()) > 0 and not any(_is_there(name) for name in names):
            poll.poll(min(left, _LOOK_AGAIN_S) * 1000)
    finally:
        os.close(mounts)


def _is_there(name: str) -> bool:
    """Whether it can be looked at; that also wakes an automount."""
    return source_descriptor(name) is not None or is_network(name) or os.access(name, os.R_OK)
