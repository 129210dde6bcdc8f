"""
Time that goes on while the machine is suspended (CLOCK_BOOTTIME), and waiting by it.

The clocks of trio and of `time.sleep` stand still then (CLOCK_MONOTONIC): a laptop that sleeps over night would keep
its keys for as long as it slept. Sources: clock_gettime(2), timerfd_create(2).
"""

from __future__ import annotations

import ctypes
import os
import time

import trio

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK, TFD_CLOEXEC: timerfd.h
_LOOK_AGAIN_S = 15.0
"""How often the clock is looked at where the kernel has no such timer."""

_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


def boottime() -> float:
    """Return the seconds since the machine was started, suspended or not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def sleep(seconds: float) -> None:
    """Return when so many seconds have passed, at once after a suspension in which they have."""
    end = boottime() + seconds
    while (left := end - boottime()) > 0:
        timer = _timer(left)
        if timer is None:
            await trio.sleep(min(left, _LOOK_AGAIN_S))
            continue
        try:
            await trio.lowlevel.wait_readable(timer)
        finally:
            os.close(timer)


def _timer(seconds: float) -> int | None:
    """Return a descriptor that can be read after so many seconds, more than 0; None if the kernel has no such timer."""
    descriptor: int = _libc.timerfd_create(time.CLOCK_BOOTTIME, _FLAGS)
    if descriptor < 0:
        return None
    nanoseconds = max(1, int(seconds * 1e9))
    value = _TimeSpec(*divmod(nanoseconds, 10**9))
    if _libc.timerfd_settime(descriptor, 0, ctypes.byref(_TimerSpec(_TimeSpec(0, 0), value)), None) != 0:
        os.close(descriptor)
        return None
    return descriptor
