"""A payload that does not answer for a while: who waits, and who does not."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import XTS_4096, LuksFiles
from support.mounts import Mounted
from support.volumes import MakeVolume
from support.waiting import wait_until

pytestmark = [pytest.mark.needs("fuse", "cryptsetup")]

WORKERS = 2
PAGE = 4096
ATTRIBUTES_ARE_OLD_S = 1.1
"""The kernel asks for attributes again after a second."""


@pytest.fixture
def storage(make_volume: MakeVolume) -> Iterator[Mounted]:
    """Return a mount whose image is the payload of the mount that is tested: stopped, it is slow storage."""
    files = make_volume()
    with Mounted(
        files.payload, "--cache", "none", "--data-path", "native", header=files.header, key_file=files.key_file
    ) as mount:
        try:
            yield mount
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(mount.pid, signal.SIGCONT)


@pytest.fixture
def slow(storage: Mounted, make_volume: MakeVolume, tmp_path: Path) -> Iterator[Mounted]:
    """Return a mount with few workers on that storage."""
    files = make_volume(XTS_4096)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    on_slow = LuksFiles(storage.image, files.header, files.key_file)
    options = ["--workers", str(WORKERS), "--data-path", "native", "--cache", "none"]
    with Mounted(
        on_slow.payload, *options, header=on_slow.header, key_file=on_slow.key_file, mountpoint=mountpoint
    ) as mount:
        try:
            yield mount
        finally:
            os.kill(storage.pid, signal.SIGCONT)


def waiting_for_storage(pid: int) -> int:
    """Return how many threads of a process have a read or write under way in another FUSE file system."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            stack = (task / "stack").read_text()
            found += "request_wait_answer" in stack and "getattr" not in stack
    return found


@pytest.mark.root  # to see what threads wait for
@pytest.mark.parametrize("work", ["read", "write"])
def test_requests_wait_and_the_rest_goes_on(work: str, storage: Mounted, slow: Mounted) -> None:
    """As many requests as there are workers reach a slow payload; attributes and closing do not wait for it."""
    done: list[int] = []
    descriptor = os.open(slow.image, os.O_RDWR)
    data = os.urandom(PAGE)

    def request(number: int) -> None:
        if work == "write":
            os.pwrite(descriptor, data, number * PAGE)
        else:
            os.pread(descriptor, PAGE, number * PAGE)
        done.append(number)

    # more reads than threads; of writes, which are held by a thread each, all but one thread's worth
    threads = [threading.Thread(target=request, args=(n,)) for n in range(16 if work == "read" else WORKERS + 3)]
    os.kill(storage.pid, signal.SIGSTOP)
    for thread in threads:
        thread.start()
    wait_until(lambda: waiting_for_storage(slow.pid) == WORKERS, "all workers wait")
    time.sleep(ATTRIBUTES_ARE_OLD_S)
    start = time.monotonic()
    assert slow.image.stat().st_size > 0
    assert os.listxattr(slow.image)
    with slow.image.open("rb"):
        pass
    assert time.monotonic() - start < 5
    assert waiting_for_storage(slow.pid) == WORKERS
    assert not done

    os.kill(storage.pid, signal.SIGCONT)
    for thread in threads:
        thread.join(20)
    assert sorted(done) == list(range(len(threads)))
    if work == "write":
        assert all(os.pread(descriptor, PAGE, number * PAGE) == data for number in done)
    os.close(descriptor)


def test_unmounting_waits_for_what_was_begun(storage: Mounted, slow: Mounted) -> None:
    """A write that was under way when the file was closed and the mount taken away is in the payload."""
    descriptor = os.open(slow.image, os.O_RDWR)
    data = os.urandom(3 * PAGE)
    writer = threading.Thread(target=os.pwrite, args=(descriptor, data, 100))
    os.kill(storage.pid, signal.SIGSTOP)
    writer.start()
    threading.Timer(0.5, os.kill, (storage.pid, signal.SIGCONT)).start()
    writer.join(20)
    os.close(descriptor)
    slow.unmount()
    with slow as again:
        assert again.image.read_bytes()[100 : 100 + len(data)] == data
