"""How much a new keyslot's KDF costs: what is forced, what is measured, and the bounds of both."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.errors import LukshdrfsError, OutOfMemory, UnsupportedFeature, UsageError
from lukshdrfs.luks.keys import kdf, kdf_cost
from lukshdrfs.luks.keys.kdf_cost import KdfWish, choose_kdf
from lukshdrfs.luks.model import Kdf

GIB_KIB = 1 << 20
MOST_KIB, MOST_WORK, MOST_ITERATIONS = 4 * GIB_KIB, 256 * GIB_KIB, kdf_cost._CEILING.iterations


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Kdf]:
    """Have a machine with 4 processors and 8 GiB, which does 1 GiB of Argon2 in a second; return what it measures."""
    measured: list[Kdf] = []

    def measure_ms(trial: Kdf) -> float:
        measured.append(trial)
        if trial.type == "pbkdf2":
            return trial.iterations / 2000
        return trial.iterations * trial.memory_kib * 1000 / GIB_KIB

    monkeypatch.setattr(kdf_cost, "_measure_ms", measure_ms)
    monkeypatch.setattr(kdf_cost, "memory_to_take_kib", lambda: 8 * GIB_KIB)
    monkeypatch.setattr(kdf_cost, "check_memory", lambda _type, _memory: None)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    return measured


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (KdfWish(), ("argon2id", 4, 512 * 1024, 4)),  # two seconds: all the memory that four passes allow
        (KdfWish(time_ms=8000), ("argon2id", 8, GIB_KIB, 4)),  # no more than 1 GiB by itself; then more passes
        (KdfWish(time_ms=1), ("argon2id", 4, 64 * 1024, 4)),  # no less than what was tried
        (KdfWish("argon2i", lanes=1, memory_kib=2 * GIB_KIB, time_ms=16_000), ("argon2i", 8, 2 * GIB_KIB, 1)),
        (KdfWish(memory_kib=32, lanes=2, time_ms=1000), ("argon2id", GIB_KIB // 32, 32, 2)),
        (KdfWish(iterations=7), ("argon2id", 7, GIB_KIB, 4)),
        (KdfWish(iterations=4, memory_kib=64, lanes=3), ("argon2id", 4, 64, 3)),
        (KdfWish(time_ms=10_000_000, memory_kib=MOST_KIB), ("argon2id", MOST_WORK // MOST_KIB, MOST_KIB, 4)),
    ],
)
def test_the_cost_of_argon2(machine: list[Kdf], wish: KdfWish, expected: tuple[str, int, int, int]) -> None:
    """Memory first, passes second; what is told is had, and nothing is measured where the passes are told."""
    chosen = choose_kdf(wish)
    assert (chosen.type, chosen.iterations, chosen.memory_kib, chosen.lanes) == expected
    assert len(chosen.salt) == 32
    assert chosen.salt != choose_kdf(wish).salt
    trial = [(one.type, one.iterations, one.memory_kib, one.lanes) for one in machine[:1]]
    tried = min(64 * 1024, GIB_KIB if wish.memory_kib is None else wish.memory_kib)
    assert trial == ([] if wish.iterations else [(wish.type, 4, tried, expected[3])])


@pytest.mark.parametrize(
    ("wish", "iterations"),
    [
        (KdfWish("pbkdf2"), 4_000_000), (KdfWish("pbkdf2", time_ms=1), 2000),
        (KdfWish("pbkdf2", iterations=1000), 1000),
        (KdfWish("pbkdf2", time_ms=1 << 40, hash="sha512"), MOST_ITERATIONS),
    ],
)  # fmt: skip
def test_the_cost_of_pbkdf2(machine: list[Kdf], wish: KdfWish, iterations: int) -> None:
    """As many iterations as the time allows, up to the ceiling, measured with the hash that is wanted."""
    chosen = choose_kdf(wish)
    assert (chosen.type, chosen.iterations, chosen.hash, len(chosen.salt)) == ("pbkdf2", iterations, wish.hash, 32)
    assert (chosen.memory_kib, chosen.lanes) == (0, 0)
    assert chosen.salt != choose_kdf(wish).salt
    assert [one.hash for one in machine] == ([] if wish.iterations else [wish.hash] * 2)


def test_pbkdf2_has_at_least_1000_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(kdf_cost, "_measure_ms", lambda _trial: 1e12)
    assert choose_kdf(KdfWish("pbkdf2")).iterations == 1000


@pytest.mark.parametrize(
    ("borders", "sound"),
    [
        (KdfWish(time_ms=1), True), (KdfWish(time_ms=0), False), (KdfWish(time_ms=-1), False),
        (KdfWish(lanes=1), True), (KdfWish(lanes=4), True), (KdfWish(lanes=0), False), (KdfWish(lanes=5), False),
        (KdfWish(memory_kib=32, lanes=4), True), (KdfWish(memory_kib=31, lanes=1), False),
        (KdfWish(memory_kib=31, lanes=4), False), (KdfWish(memory_kib=MOST_KIB), True),
        (KdfWish(memory_kib=MOST_KIB + 1), False), (KdfWish(iterations=4), True), (KdfWish(iterations=3), False),
        (KdfWish(iterations=256), True), (KdfWish(iterations=257), False),
        (KdfWish(iterations=64, memory_kib=MOST_KIB), True), (KdfWish(iterations=65, memory_kib=MOST_KIB), False),
        (KdfWish("pbkdf2", iterations=1000), True), (KdfWish("pbkdf2", iterations=999), False),
        (KdfWish("pbkdf2", iterations=MOST_ITERATIONS), True),
        (KdfWish("pbkdf2", iterations=MOST_ITERATIONS + 1), False),
        (KdfWish("pbkdf2", memory_kib=64), False), (KdfWish("pbkdf2", lanes=1), False), (KdfWish("argon2d"), False),
        (KdfWish("argon2i"), True), (KdfWish("scrypt"), False), (KdfWish(""), False),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("machine")
def test_what_can_be_wished_for(borders: KdfWish, *, sound: bool) -> None:
    """On each border it can be had, and beyond it is wrong usage, before anything is measured."""
    if sound:
        borders.check()
    else:
        with pytest.raises(UsageError):
            choose_kdf(borders)
    with pytest.raises(UnsupportedFeature):
        KdfWish(borders.type, hash="unknown").check()


@pytest.mark.usefixtures("machine")
def test_memory_that_cannot_be_had_is_no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Argon2 is to take is looked for before; with too little for the least of it, another KDF is the way out."""
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(kdf_cost, "check_memory", lambda type_, memory: asked.append((type_, memory)))
    KdfWish("argon2i", memory_kib=100).check()
    KdfWish().check()
    assert asked == [("argon2i", 100), ("argon2id", GIB_KIB)]
    for there, lanes, enough in ((32, 4, True), (31, 1, False), (31, 4, False)):
        monkeypatch.setattr(kdf_cost, "memory_to_take_kib", lambda there=there: there)
        if enough:
            assert KdfWish(lanes=lanes).usual_memory_kib == there
        else:
            with pytest.raises(OutOfMemory, match="--pbkdf pbkdf2"):
                choose_kdf(KdfWish(lanes=lanes))


@pytest.mark.parametrize(("processors", "lanes"), [(1, 1), (3, 3), (4, 4), (64, 4), (None, 1)])
def test_threads_are_processors_up_to_four(monkeypatch: pytest.MonkeyPatch, processors: int | None, lanes: int) -> None:
    """A machine that does not tell has one."""
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    assert KdfWish().usual_lanes == lanes
    assert KdfWish(lanes=2).usual_lanes == 2


def test_little_memory_is_told(
    machine: list[Kdf], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Below 64 MiB guessing is cheap, which the log says; memory that the trial has taken is made up for by passes."""
    monkeypatch.setattr(kdf_cost, "memory_to_take_kib", lambda: 64 * 1024)
    choose_kdf(KdfWish())
    assert caplog.text == ""
    monkeypatch.setattr(kdf_cost, "memory_to_take_kib", lambda: 64 * 1024 - 1)
    chosen = choose_kdf(KdfWish(iterations=5))
    assert (chosen.iterations, chosen.memory_kib) == (5, 64 * 1024 - 1)
    assert "63 MiB" in caplog.text
    caplog.clear()
    choose_kdf(KdfWish(memory_kib=100, iterations=5))
    assert caplog.text == ""
    there = iter([64 * 1024] * 2)
    monkeypatch.setattr(kdf_cost, "memory_to_take_kib", lambda: next(there, 32 * 1024))
    chosen = choose_kdf(KdfWish(time_ms=1000))
    assert (chosen.iterations, chosen.memory_kib) == (32, 32 * 1024)
    assert len(machine) == 2


@given(st.lists(st.tuples(*[st.integers(0, 1 << 22)] * 3), min_size=1, max_size=3))
def test_the_share_of_memory(bounds: list[tuple[int, int, int]]) -> None:
    """Half of what there ever is, half of what is free, and 24 MiB are left over, by whoever grants the least."""
    from lukshdrfs.luks.keys.free_memory import Bound  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        asked: list[bool] = []
        found = [Bound("x", limit, free, threads) for limit, free, threads in bounds]

        def memory_bounds(*, throttled: bool) -> list[Bound]:
            asked.append(throttled)
            return found

        patch.setattr(kdf_cost, "memory_bounds", memory_bounds)
        shares = [min(limit // 2, (free - threads) // 2, free - threads - 24 * 1024) for limit, free, threads in bounds]
        assert kdf_cost.memory_to_take_kib() == max(0, min(shares))
        assert asked == [True]
        found.clear()
        patch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)
        assert kdf_cost.memory_to_take_kib() == 2 << 20


def test_what_is_measured_is_the_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds of wall time, never nothing; the key that came out is wiped."""
    made: list[object] = []
    times = iter([10.0, 12.5, 20.0, 20.0])

    class Key:
        def wipe(self) -> None:
            made.append("wiped")

    def derive(trial: Kdf, passphrase: object, size: int) -> Key:
        made.append((trial.iterations, bytes(passphrase.view) != b"", size))  # type: ignore[attr-defined]
        return Key()

    monkeypatch.setattr(kdf_cost, "derive", derive)
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    assert [kdf_cost._measure_ms(Kdf("pbkdf2", b"", count, hash="sha256")) for count in (7, 8)] == [2500, 0.01]
    assert made == [(7, True, 64), "wiped", (8, True, 64), "wiped"]


def test_a_derivation_does_not_keep_the_program_from_ending() -> None:
    """It runs in a thread of its own that nobody waits for, and what it raises comes out."""
    seen: list[bool] = []

    def work() -> None:
        seen.append(threading.current_thread().daemon)
        seen.append(threading.current_thread() is threading.main_thread())
        raise LukshdrfsError("no")

    with pytest.raises(LukshdrfsError, match="no"):
        kdf._run_interruptibly(work)
    assert seen == [True, False]
