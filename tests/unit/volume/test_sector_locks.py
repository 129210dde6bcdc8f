"""SectorLocks: who may be where at the same time."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lukshdrfs.volume.sector_locks import SectorLocks

PATIENCE_S = 20.0


def held_by_both(first: tuple[int, int, bool], second: tuple[int, int, bool]) -> bool:
    """Whether a second thread gets its range while a first one has its own."""
    locks = SectorLocks()
    got_it = threading.Event()

    def take() -> None:
        with locks.hold(second[0], second[1], exclusive=second[2]):
            got_it.set()

    thread = threading.Thread(target=take)
    with locks.hold(first[0], first[1], exclusive=first[2]):
        thread.start()
        at_once = got_it.wait(0.05)
    thread.join(PATIENCE_S)
    assert got_it.is_set(), "in the end everybody gets it"
    return at_once


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 10, False), (0, 10, False), True),
        ((0, 10, False), (5, 15, False), True),
        ((0, 10, True), (10, 20, True), True),
        ((10, 20, True), (0, 10, True), True),
        ((0, 10, True), (0, 10, True), False),
        ((0, 10, True), (9, 20, True), False),
        ((0, 10, True), (0, 10, False), False),
        ((0, 10, False), (0, 10, True), False),
        ((0, 100, False), (50, 51, True), False),
        ((50, 51, True), (0, 100, False), False),
        ((1 << 63, (1 << 63) + 1, True), (0, 1 << 64, True), False),
    ],
)
def test_who_waits_for_whom(first: tuple[int, int, bool], second: tuple[int, int, bool], *, expected: bool) -> None:
    """Ranges that overlap exclude each other unless both are shared; ranges that only touch do not."""
    assert held_by_both(first, second) == expected


def test_a_failure_inside_gives_the_range_back() -> None:
    """The range is free again when the block fails."""
    locks = SectorLocks()
    with pytest.raises(RuntimeError), locks.hold(0, 10, exclusive=True):
        raise RuntimeError
    with locks.hold(0, 10, exclusive=True):
        pass


def test_no_two_writers_are_ever_in_one_place() -> None:
    """Under many threads with random ranges, every byte has at all times one writer, or readers alone."""
    locks = SectorLocks()
    state = [0] * 32  # readers of each byte; -1: a writer
    guard = threading.Lock()

    def enter(span: range, *, exclusive: bool) -> None:
        with guard:
            for at in span:
                assert state[at] == 0 if exclusive else state[at] >= 0
                state[at] = -1 if exclusive else state[at] + 1

    def leave(span: range, *, exclusive: bool) -> None:
        with guard:
            for at in span:
                state[at] = 0 if exclusive else state[at] - 1

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            start = rng.randrange(31)
            span = range(start, rng.randrange(start + 1, 33))
            exclusive = rng.random() < 0.4
            with locks.hold(span.start, span.stop, exclusive=exclusive):
                enter(span, exclusive=exclusive)
                leave(span, exclusive=exclusive)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert state == [0] * 32


def test_a_range_wakes_all_that_wait_for_it() -> None:
    """Every one of several waiting readers goes on when the writer is done."""
    locks = SectorLocks()
    with ThreadPoolExecutor(5) as pool:
        with locks.hold(0, 10, exclusive=True):
            waiting = [pool.submit(hold_shortly, locks) for _ in range(5)]
        for each in waiting:
            each.result(PATIENCE_S)


def test_a_range_that_is_freed_wakes_the_one_who_wants_it() -> None:
    """Whoever waits for a range goes on when it is freed, though another waits longer, for a range still held."""
    locks = SectorLocks()
    got_it = threading.Event()

    def take(start: int, end: int, event: threading.Event) -> None:
        with locks.hold(start, end, exclusive=True):
            event.set()

    first = threading.Thread(target=take, args=(0, 10, threading.Event()))
    second = threading.Thread(target=take, args=(10, 20, got_it))
    with locks.hold(0, 10, exclusive=False):
        with locks.hold(10, 20, exclusive=False):
            first.start()
            first.join(0.05)  # it waits by now
            second.start()
            second.join(0.05)
        assert got_it.wait(PATIENCE_S)
    first.join(PATIENCE_S)
    second.join(PATIENCE_S)


def hold_shortly(locks: SectorLocks) -> None:
    """Take a shared range and give it back."""
    with locks.hold(3, 4, exclusive=False):
        pass


def test_a_writer_gets_its_turn_among_readers() -> None:
    """Readers that follow one another without a gap do not keep a writer out for ever."""
    locks = SectorLocks()
    stop, written = threading.Event(), threading.Event()
    entered = threading.Semaphore(0)

    def read(baton: threading.Semaphore, after: threading.Semaphore) -> None:
        while not stop.is_set():
            with locks.hold(0, 10, exclusive=False):
                entered.release()
                after.release()  # the other reader may come in before this one leaves
                baton.acquire(timeout=0.02)

    def write() -> None:
        with locks.hold(0, 10, exclusive=True):
            written.set()

    batons = [threading.Semaphore(0), threading.Semaphore(0)]
    readers = [threading.Thread(target=read, args=(batons[n], batons[1 - n])) for n in (0, 1)]
    writer = threading.Thread(target=write)
    for reader in readers:
        reader.start()
    entered.acquire(timeout=PATIENCE_S)
    writer.start()
    try:
        assert written.wait(5.0)
    finally:
        stop.set()
        for thread in (*readers, writer):
            thread.join(PATIENCE_S)
