"""
Locking a mount: the image stops serving, what is cached is dropped, the key is wiped, the mount goes.

It happens when the mount's owner asks for it (`lukshdrfs lock`), on SIGUSR1, or by itself when the policy says so.
Everything that was written and is acknowledged is flushed. Who still has the image open gets EIO for everything until
it closes it; only then does the daemon end. Where Python has served the data, the daemon ends at once: plaintext may be
anywhere in its memory. Who has the image open gets ENOTCONN then.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

import trio

from lukshdrfs.errors import DeviceError, LukshdrfsError
from lukshdrfs.fuse import boottime
from lukshdrfs.fuse.filesystem import ImageFileSystem
from lukshdrfs.fuse.options import LockPolicy
from lukshdrfs.headers import HeaderPresence
from lukshdrfs.mounts.table import Mount, detach, find_mount
from lukshdrfs.volume import Volume

log = logging.getLogger(__name__)

LOCK_SIGNAL = signal.SIGUSR1
PATIENCE_S = 5.0
"""
How long requests that were begun may take. After that, those that wait for a server that is away fail; where even
that is of no use, the process ends at once, and its memory with it.
"""
_MOMENT_S = 1.0
FLUSH_PATIENCE_S = 3.0
"""How long the mount stays for its payload to be flushed. After that, only the daemon does."""
_LOOKS_PER_TIMEOUT = 20


def ignore_lock_signal() -> None:
    """Have a lock that is asked for before anybody listens, or again, do nothing: by default, the signal kills."""
    signal.signal(LOCK_SIGNAL, signal.SIG_IGN)


async def lock_when_due(
    volume: Volume, file_system: ImageFileSystem, mounted: Mount | None, policy: LockPolicy
) -> None:
    """Wait for a reason to lock, and lock: to the end, though the mount may end meanwhile."""
    await file_system.initialised.wait()
    reason = await _reason_to_lock(policy, file_system)
    log.warning("locking: %s", reason)
    with trio.CancelScope(shield=True):
        await _lock(volume, file_system, mounted)


async def _lock(volume: Volume, file_system: ImageFileSystem, mounted: Mount | None) -> None:
    drained = await file_system.lock(PATIENCE_S)
    # a step of a conversion comes to its end first, and not after the key is wiped
    drained = await trio.to_thread.run_sync(file_system.converting.end, PATIENCE_S) and drained
    if not drained:
        volume.fail_waiting()
        drained = await file_system.lock(_MOMENT_S)
        drained = await trio.to_thread.run_sync(file_system.converting.end, _MOMENT_S) and drained
        volume.wait_again()
    if not drained:
        log.error("requests hang at the payload; the daemon ends at once")
        _take_away(mounted)
        os._exit(1)
    volume.wipe_keys()
    file_system.key_wiped = True
    log.info("the key is wiped")
    flushed = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_flush, volume, flushed)
        with trio.move_on_after(FLUSH_PATIENCE_S):
            await flushed.wait()
        if not flushed.is_set():
            log.warning("the mount goes; its daemon stays until the payload has what was acknowledged")
        await trio.to_thread.run_sync(_take_away, mounted)
    volume.close()
    if file_system.served_by_python and mounted and find_mount(mounted.mountpoint) != mounted:
        # Python and pyfuse3 have had plaintext in memory that they have given back without wiping it
        log.info("the daemon ends, and what it has had in memory with it")
        logging.shutdown()
        os._exit(0)


async def _flush(volume: Volume, flushed: trio.Event) -> None:
    try:
        if not volume.read_only:
            await trio.to_thread.run_sync(volume.flush)
    except LukshdrfsError as error:
        log.error("%s", error)  # noqa: TRY400 - an error of the storage, not of the program
    flushed.set()


def _take_away(mounted: Mount | None) -> None:
    if mounted is None or find_mount(mounted.mountpoint) != mounted:
        return
    try:
        detach(mounted.mountpoint, lazy=True)
    except LukshdrfsError as error:
        log.warning("%s", error)


async def _reason_to_lock(policy: LockPolicy, file_system: ImageFileSystem) -> str:
    """Return the first reason that comes."""
    send, receive = trio.open_memory_channel[str](4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_on_signal, send)
        nursery.start_soon(_when_asked, file_system.asked_to_lock, send)
        if policy.max_time_s is not None:
            nursery.start_soon(_after, policy.max_time_s, send)
        if policy.idle_timeout_s is not None:
            nursery.start_soon(_when_idle, policy.idle_timeout_s, lambda: file_system.requests, send)
        if policy.header is not None:
            nursery.start_soon(_when_header_gone, policy.header, send)
        reason = await receive.receive()
        nursery.cancel_scope.cancel()
    return reason


async def _on_signal(reasons: trio.MemorySendChannel[str]) -> None:
    with trio.open_signal_receiver(LOCK_SIGNAL) as received:
        async for _ in received:
            await reasons.send("asked to")


async def _when_asked(asked: trio.Event, reasons: trio.MemorySendChannel[str]) -> None:
    await asked.wait()
    await reasons.send("asked to")


async def _after(seconds: float, reasons: trio.MemorySendChannel[str]) -> None:
    await boottime.sleep(seconds)
    await reasons.send(f"its time of {seconds:g} s is over")


async def _when_idle(seconds: float, requests: Callable[[], int], reasons: trio.MemorySendChannel[str]) -> None:
    last, since = requests(), boottime.boottime()
    while boottime.boottime() - since < seconds:
        await boottime.sleep(seconds / _LOOKS_PER_TIMEOUT)
        if (now := requests()) != last:
            last, since = now, boottime.boottime()
    await reasons.send(f"not used for {seconds:g} s")


async def _when_header_gone(header: str, reasons: trio.MemorySendChannel[str]) -> None:
    try:
        presence = HeaderPresence(header)
    except (DeviceError, OSError) as error:
        await reasons.send(f"header {header} cannot be watched: {error}")
        return
    try:
        gone = await trio.to_thread.run_sync(presence.wait_gone, abandon_on_cancel=True)
    finally:
        presence.cancel()
    if gone:
        await reasons.send(f"header {header} is gone")
