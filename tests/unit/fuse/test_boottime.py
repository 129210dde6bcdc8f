"""Waiting by the clock that goes on while the machine is suspended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
import trio.testing

from lukshdrfs.fuse import boottime
from lukshdrfs.fuse import locking as lock

pytestmark = pytest.mark.trio


def timers() -> list[str]:
    """Return what the kernel says of the timers that this process waits for."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if entry.readlink().name == "anon_inode:[timerfd]":
                found.append((Path("/proc/self/fdinfo") / entry.name).read_text())
        except FileNotFoundError:
            continue  # the directory's own
    return found


@pytest.fixture
def suspended(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have a clock on which a suspension is a number that is put into the list."""
    hours: list[float] = [0.0]
    monkeypatch.setattr(boottime, "boottime", lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + hours[0])
    return hours


async def test_the_kernel_wakes_us_by_that_clock() -> None:
    """The timer that is waited for is of CLOCK_BOOTTIME, so a suspension does not stop it; it is gone afterwards."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(boottime.sleep, 3600)
        await trio.testing.wait_all_tasks_blocked()
        (timer,) = timers()
        nursery.cancel_scope.cancel()
    assert f"clockid: {time.CLOCK_BOOTTIME}\n" in timer
    assert timers() == []


async def test_it_takes_as_long_as_it_is_told() -> None:
    """Not less, and not much more."""
    before = time.monotonic()
    await boottime.sleep(0.2)
    assert 0.2 <= time.monotonic() - before < 5
    await boottime.sleep(0)
    await boottime.sleep(-1)


async def test_without_such_a_timer_the_clock_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without it (a sandbox) does not end the waiting, nor make it endless."""
    monkeypatch.setattr(boottime, "_timer", lambda _seconds: None)
    before = time.monotonic()
    await boottime.sleep(0.2)
    assert 0.2 <= time.monotonic() - before < 5


async def test_an_idle_mount_locks_after_a_suspension(suspended: list[float]) -> None:
    """Hours of sleep are hours without a request, though the machine was awake for a moment only."""
    send, receive = trio.open_memory_channel[str](1)
    # looks that are a moment apart, for a limit of hours
    with pytest.MonkeyPatch.context() as patch, trio.fail_after(20):
        patch.setattr(lock, "_LOOKS_PER_TIMEOUT", 3600 * 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock._when_idle, 3600.0, lambda: 7, send)
            await trio.sleep(0.2)
            assert receive.statistics().current_buffer_used == 0
            suspended[0] = 3601.0
            assert "not used for 3600 s" in await receive.receive()
            nursery.cancel_scope.cancel()


async def test_a_mount_in_use_does_not(suspended: list[float]) -> None:
    """Whoever has used it after waking up has it for as long again."""
    send, receive = trio.open_memory_channel[str](1)
    requests = iter(range(10**9))
    with pytest.MonkeyPatch.context() as patch, trio.move_on_after(0.5):
        patch.setattr(lock, "_LOOKS_PER_TIMEOUT", 3600 * 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock._when_idle, 3600.0, lambda: next(requests), send)
            await trio.sleep(0.1)
            suspended[0] = 1800.0
    assert receive.statistics().current_buffer_used == 0


async def test_the_time_of_a_mount_is_waited_for_by_that_clock() -> None:
    """`--max-time` has such a timer, too."""
    send, _receive = trio.open_memory_channel[str](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lock._after, 28800.0, send)
        await trio.testing.wait_all_tasks_blocked()
        (timer,) = timers()
        nursery.cancel_scope.cancel()
    assert f"clockid: {time.CLOCK_BOOTTIME}\n" in timer
