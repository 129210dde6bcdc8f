"""A conversion beside a volume that is read and written: what is seen meanwhile, and what a failing medium leaves."""

from __future__ import annotations

import errno
import fcntl
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.conversions import MODES, Conversion, conversion
from support.waiting import wait_until

from lukshdrfs import PayloadError, open_volume
from lukshdrfs.errors import InUse, UnsupportedFeature
from lukshdrfs.headers import lock as header_locks
from lukshdrfs.headers import read_header
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Stage
from lukshdrfs.volume import Volume
from lukshdrfs.volume.moving.online import OnlineConversion

KIB = 1 << 10
SIZE = 512 * KIB + 4096
ZONE = 16 * KIB
BACKWARD = "decrypt backward"
"""As cryptsetup begins it."""
BY_MODE = pytest.mark.parametrize("mode", [*MODES, BACKWARD])


@contextmanager
def converting(made: Conversion) -> Iterator[tuple[Volume, OnlineConversion]]:
    """Open a volume whose conversion has begun; a thread waits to go on with it."""
    with open_volume(made.payload, header=made.header, passphrase=made.key.read_bytes()) as volume:
        running = volume.conversion
        assert running is not None
        running.zone_size = ZONE
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield volume, running
        finally:
            running.end()
            thread.join()


def begun(mode: str, folder: Path, *options: str) -> Conversion:
    """Return a volume whose conversion has begun."""
    made = conversion(mode.split(maxsplit=1)[0], folder / "volume", SIZE, old=("--sector-size", "512"))
    if mode == BACKWARD:
        made.theirs("--init-only", *options)
    else:
        made.ours("--init-only", *options)
    return made


@BY_MODE
@pytest.mark.parametrize("resilience", ["checksum", "journal"])
def test_reads_and_writes_go_on(tmp_path: Path, mode: str, resilience: str) -> None:
    """Each read sees what was last written, on both sides of the border and across it, while that moves."""
    made = begun(mode, tmp_path, "--resilience", resilience)
    model = bytearray(made.plain)
    rng = random.Random(1)
    with converting(made) as (volume, running):
        running.proceed()
        count = 0
        while running.progress.state == "running" or count < 200:
            at = rng.randrange(SIZE)
            size = min(SIZE - at, rng.choice([1, 511, 512, 4096, 5000, 40_000]))
            if rng.random() < 0.5:
                data = rng.randbytes(size)
                assert volume.pwrite(data, at) == size
                model[at : at + size] = data
            else:
                assert volume.pread(size, at) == model[at : at + size]
            count += 1
        assert (running.progress.state, running.progress.done) == ("done", SIZE)
        assert volume.pread(SIZE, 0) == model
    made.with_plain(bytes(model)).check()
    assert not read_header(made.header).requirements


@BY_MODE
def test_it_is_paused_and_ended_between_two_steps(tmp_path: Path, mode: str) -> None:
    """Nothing is converted before it is told to go on, nor after a pause; what is left is no crash."""
    made = begun(mode, tmp_path)
    with converting(made) as (volume, running):
        assert running.progress.state == "paused"
        running.rate = 4 * ZONE  # so that there is time to pause it
        running.proceed()
        wait_until(lambda: running.progress.done > 0, "the first step")
        running.pause()
        wait_until(lambda: running.progress.state == "paused", "the pause")
        assert volume.pread(SIZE, 0) == made.plain
    state = ReencryptionState.of(read_header(made.header))
    assert state is not None
    assert state.stage is Stage.CLEAN
    assert 0 < state.converted(SIZE) < SIZE
    made.check_as_it_is()
    made.ours()
    made.check()


def failing_once(monkeypatch: pytest.MonkeyPatch, method: str, number: int, *, after: bool) -> None:
    """Have the header's medium fail at one call of a method, before or after it has done its work."""
    real: Callable[..., Any] = getattr(LiveHeader, method)
    calls = 0

    def failing(self: LiveHeader, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            raise PayloadError("the medium is gone", errno.EIO)
        result = real(self, *arguments)
        if calls == number:
            raise PayloadError("the medium is gone", errno.EIO)
        return result

    monkeypatch.setattr(LiveHeader, method, failing)


def error_of(work: Callable[[], object]) -> int | None:
    """Return the errno that something fails with, None if it does not."""
    try:
        work()
    except PayloadError as error:
        return error.errno
    return None


FAILURES = [
    ("write_area", 3, False), ("write_area", 3, True),
    ("_write", 9, False), ("_write", 9, True), ("_write", 10, False), ("_write", 10, True),  # of a hot header
    ("_write", 11, False), ("_write", 11, True), ("_write", 12, False), ("_write", 12, True),  # of the one after it
]  # fmt: skip


@pytest.mark.parametrize("mode", ["encrypt", BACKWARD])
@pytest.mark.parametrize(("method", "number", "after"), FAILURES)
def test_a_header_that_fails_stops_the_conversion_and_not_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, method: str, number: int, *, after: bool
) -> None:
    """All but the zone in work is served; nothing is written there until it is known what it is; then it goes on."""
    made = begun(mode, tmp_path)
    model = bytearray(made.plain)
    failing_once(monkeypatch, method, number, after=after)
    with converting(made) as (volume, running):
        running.proceed()
        wait_until(lambda: running.progress.state == "failed", "the failure")
        assert "gone" in running.progress.error
        refused = 0
        for at in range(0, SIZE, 512):  # no write is in the zone and beside it
            data = random.Random(at).randbytes(512)
            if error_of(lambda at=at, data=data: volume.pwrite(data, at)):  # type: ignore[misc]
                assert error_of(lambda at=at: volume.pread(512, at)) == errno.EIO  # type: ignore[misc]
                refused += 1
            else:
                model[at : at + len(data)] = data
        assert (0 < refused * 512 <= ZONE) if method == "_write" else (refused == 0)
        volume.flush()
        # what is on the storage now is what a power cut would leave
        left = made.with_plain(bytes(model)).copied(tmp_path / f"left-{number}")
        running.proceed()
        wait_until(lambda: running.progress.state == "done", "the end")
        assert volume.pread(SIZE, 0) == model
    made.with_plain(bytes(model)).check()
    left.check_as_it_is()
    left.ours()
    left.check()


def test_a_volume_whose_end_has_no_checksum_is_not_converted_online(tmp_path: Path) -> None:
    """Checksums of 4096 bytes leave the last sectors without: cut off there, they would be taken for converted."""
    made = conversion("encrypt", tmp_path / "volume", SIZE + 512, "--sector-size", "512")
    made.theirs("--init-only", "--resilience", "checksum")
    with converting(made) as (volume, running):
        with pytest.raises(UnsupportedFeature, match="lukshdrfs encrypt"):
            running.proceed()
        assert volume.pread(SIZE + 512, 0) == made.plain
    made.ours()
    made.check()


def test_who_keeps_the_headers_lock_stops_the_conversion_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read the header may lock it: no request waits for that, and no zone is left in work."""
    monkeypatch.setattr(header_locks, "LOCK_PATIENCE_S", 0.1)
    made = begun("reencrypt", tmp_path)
    with converting(made) as (volume, running), made.header.open("rb") as theirs:
        running.rate = 8 * ZONE
        running.proceed()
        wait_until(lambda: running.progress.done > 0, "the first step")
        fcntl.flock(theirs, fcntl.LOCK_SH)
        wait_until(lambda: running.progress.state == "failed", "the failure")
        assert volume.pread(SIZE, 0) == made.plain
        assert volume.pwrite(made.plain, 0) == SIZE
        running.pause()
        assert running.progress.state == "failed", "a pause mends nothing"
        fcntl.flock(theirs, fcntl.LOCK_UN)
        running.rate = None
        running.proceed()
        wait_until(lambda: running.progress.state == "done", "the end")
    made.check()


def test_another_program_at_the_header_ends_it(tmp_path: Path) -> None:
    """A header that somebody else has changed is not written to, and the volume goes on."""
    made = begun("reencrypt", tmp_path)
    with converting(made) as (volume, running):
        running.rate = 8 * ZONE
        running.proceed()
        wait_until(lambda: running.progress.done > 0, "the first step")
        running.pause()
        area = bytearray(made.header.read_bytes())
        area[24] ^= 1  # a letter of the label
        made.header.write_bytes(area)
        running.proceed()
        wait_until(lambda: running.progress.state == "failed", "the failure")
        assert "another program" in running.progress.error
        assert made.header.read_bytes() == area
        assert volume.pread(SIZE, 0) == made.plain


def test_nobody_else_has_it_meanwhile(tmp_path: Path) -> None:
    """Neither a second opening nor a command that goes on gets at a half-converted volume that is open."""
    made = begun("reencrypt", tmp_path)
    with converting(made), pytest.raises(InUse):
        open_volume(made.payload, header=made.header, passphrase=made.key.read_bytes(), read_only=True)
    made.check_as_it_is()
