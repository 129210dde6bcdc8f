"""
Mounting, serving until the end, and ending cleanly.

The end comes from the kernel (somebody unmounts) or by SIGINT or SIGTERM. A signal unmounts; if the image is still
in use, the mount's name goes at once and the daemon serves the last user to the end, so that nothing written is
lost. A second signal ends it there and then.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import pyfuse3
import trio

from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError
from lukshdrfs.fuse.checks import DEVICE, is_there
from lukshdrfs.fuse.filesystem import ImageFileSystem
from lukshdrfs.fuse.guard import Guard
from lukshdrfs.fuse.lane.lane import FastLane, fuse_descriptors
from lukshdrfs.fuse.locking import ignore_lock_signal, lock_when_due
from lukshdrfs.fuse.mounting import mount_file_system, mount_source
from lukshdrfs.fuse.options import MountOptions
from lukshdrfs.fuse.readiness import load_code
from lukshdrfs.mounts.holders import describe_holders
from lukshdrfs.mounts.table import Mount, detach, find_mount
from lukshdrfs.volume import Volume

log = logging.getLogger(__name__)

READAHEAD_KIB = 1024
"""The kernel's own is 128: a large file is read in as many more requests."""
FINISHING_THREADS = 24
"""
Threads that decrypt besides `MountOptions.workers`: the lane's spare ones (SPARE_THREADS in fuse/lane/lane.c), and the
receivers of a server's connections (payload/nbd/session.c). More contexts than threads only take memory.
"""


def serve(
    volume: Volume,
    options: MountOptions,
    ready: Callable[[], None],
    *,
    serving: Callable[[], None] = lambda: None,
    end_on_hangup: bool = False,
) -> None:
    """
    Mount a volume and serve it until it is unmounted.

    `ready` is called as soon as it is mounted, before anything is served: it must not touch the mount. `serving` is
    called, in another thread, when the kernel's requests are answered.

    With `end_on_hangup`, losing the terminal (SIGHUP) ends it too; otherwise SIGHUP asks to look at the payload's size.

    The volume is flushed at the end, whatever the reason, and nothing stays mounted. Raises DeviceError if it
    cannot be mounted, or not by the data path that was asked for; PayloadError if the last flush fails.
    """
    file_system = ImageFileSystem(volume, options)
    kernel_options = {
        "default_permissions",
        f"fsname={mount_source(options.source)}",
        "subtype=lukshdrfs",
        *options.kernel_options,
        *(["ro"] if volume.read_only else []),
    }
    signals = {signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if end_on_hangup else ())}
    ignore_lock_signal()
    # held back until somebody listens: from here on, ending means to unmount
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        others = fuse_descriptors()
        mount_file_system(file_system, options, kernel_options)
        mounted = find_mount(options.mountpoint)
        lane, guard = None, Guard()
        try:
            descriptors = fuse_descriptors() - others
            lane = _fast_lane(volume, options, descriptors)
            if lane:
                file_system.serve_by_lane(lane)
            else:
                lane = _relay(volume, descriptors)
                if lane:
                    file_system.pass_through(lane)
            if lane and mounted:
                guard.start(mounted.device)
            trio.run(
                _serve_until_unmounted, _Serving(volume, options, file_system, mounted, lane, serving), ready, signals
            )
        finally:
            file_system.converting.end()
            if lane:
                lane.stop()
            pyfuse3.close(unmount=is_there(mounted))
            guard.end()
            if not volume.read_only and not file_system.locked:
                volume.flush()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True, slots=True)
class _Serving:
    """What is being served."""

    volume: Volume
    options: MountOptions
    file_system: ImageFileSystem
    mounted: Mount | None
    lane: FastLane | None
    serving: Callable[[], None]


def _fast_lane(volume: Volume, options: MountOptions, descriptors: set[int]) -> FastLane | None:
    """Start the fast lane, if it is wanted and can be had. Raises DeviceError if nothing else will do."""
    if options.data_path == "python":
        return None
    try:
        return _start_lane(volume, options, descriptors)
    except DeviceError as error:
        if options.data_path == "native":
            raise
        log.warning("%s; requests are served by Python, more slowly", error)
        return None


def _start_lane(volume: Volume, options: MountOptions, descriptors: set[int]) -> FastLane:
    native = volume.native(options.workers + FINISHING_THREADS)
    if native is None:
        raise DeviceError("the fast lane needs a payload that is a file, a block device or an NBD export")
    lane = FastLane(native, _only(descriptors), volume.size, options.workers)
    load_code()
    return lane


def _only(descriptors: set[int]) -> int:
    if len(descriptors) != 1:
        raise DeviceError(f"there are {len(descriptors)} descriptors of {DEVICE} instead of one")
    return next(iter(descriptors))


def _relay(volume: Volume, descriptors: set[int]) -> FastLane | None:
    """
    Have requests pass through the lane though Python serves them, so that the kernel's cache is kept in step.

    Without it, the kernel notices by the time of modification, and so now and then too late.
    """
    try:
        return FastLane(None, _only(descriptors), volume.size, 0)
    except DeviceError as error:
        log.warning("%s; do not read through the page cache what is written by direct I/O", error)
        return None


async def _serve_until_unmounted(serving: _Serving, ready: Callable[[], None], signals: set[signal.Signals]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signals, serving.mounted, signals)
        nursery.start_soon(_raise_readahead, serving)
        nursery.start_soon(_tell_serving, serving)
        nursery.start_soon(serving.file_system.resizing.serve)
        nursery.start_soon(
            lock_when_due, serving.volume, serving.file_system, serving.mounted, serving.options.lock_policy
        )
        if serving.lane:
            nursery.start_soon(_end_with_lane, serving.lane)
        ready()
        nursery.start_soon(_convert, serving)
        if signal.SIGHUP not in signals:
            nursery.start_soon(_refresh_on_hangup, serving.file_system)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _convert(serving: _Serving) -> None:
    """Go on with a conversion in place, if that is wanted, or wait until it is."""
    await serving.file_system.initialised.wait()
    wanted = serving.options.conversion
    serving.file_system.converting.start(proceed=wanted.proceed, rate=wanted.rate, zone_size=wanted.zone_size)


async def _tell_serving(serving: _Serving) -> None:
    await serving.file_system.initialised.wait()
    await trio.to_thread.run_sync(serving.serving)


async def _refresh_on_hangup(file_system: ImageFileSystem) -> None:
    """Look whether the payload has become longer or shorter, when asked to."""
    await file_system.initialised.wait()
    with trio.open_signal_receiver(signal.SIGHUP) as received:
        async for _ in received:
            await file_system.resizing.refresh()


async def _end_with_lane(lane: FastLane) -> None:
    """End when the lane does: it hears of the unmounting, libfuse does not."""
    await lane.wait_ended()
    pyfuse3.terminate()


async def _raise_readahead(serving: _Serving) -> None:
    """Have the kernel read further ahead, which is for root to ask."""
    await serving.file_system.initialised.wait()  # until then the kernel may still lower it
    if serving.mounted is None or os.geteuid() != 0:
        return
    setting = trio.Path(f"/sys/class/bdi/{serving.mounted.device}/read_ahead_kb")
    try:
        await setting.write_text(str(READAHEAD_KIB))
    except OSError as error:
        log.debug("%s: %s", setting, error.strerror)


async def _end_on_signals(
    mounted: Mount | None,
    signals: set[signal.Signals],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(*signals) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        task_status.started()
        asked_before = False
        async for number in received:
            log.info("ending on %s", signal.Signals(number).name)
            # in a thread: unmounting waits for dirty pages, which are written through this very loop
            if asked_before or not await trio.to_thread.run_sync(_unmount, mounted):
                pyfuse3.terminate()
                return
            asked_before = True


def _unmount(mounted: Mount | None) -> bool:
    """Take the mount away, lazily if it is in use; return whether that worked."""
    if mounted is None or not is_there(mounted):
        return False
    try:
        try:
            detach(mounted.mountpoint)
        except InUse:
            log.warning(
                "%s is in use: %s; its name goes now, the rest when that is done",
                mounted.mountpoint,
                describe_holders(mounted.mountpoint),
            )
            detach(mounted.mountpoint, lazy=True)
    except LukshdrfsError as error:
        log.warning("%s", error)
        return False
    return True
