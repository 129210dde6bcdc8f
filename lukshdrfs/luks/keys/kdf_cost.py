"""
How much work a new keyslot's KDF is to take, by measuring this machine.

The bounds are cryptsetup's (lib/utils_pbkdf.c and crypt_pbkdf_get_limits): Argon2 with at most 1 GiB by default,
never more than half of the memory, 4 threads, at least 4 passes; PBKDF2 with at least 1000 iterations. The memory is
what this process can have, which a control group may make far less than the machine's.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from lukshdrfs.errors import OutOfMemory, UsageError
from lukshdrfs.luks.keys.free_memory import in_mib, memory_bounds
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.keys.kdf import KdfLimits, check_memory, derive
from lukshdrfs.luks.model import SALT_SIZE, Kdf
from lukshdrfs.secret import SecretBytes

log = logging.getLogger(__name__)

DEFAULT_MEMORY_KIB = 1024 * 1024
MIN_MEMORY_KIB = 32
SMALL_MEMORY_KIB = 64 * 1024
"""The least that RFC 9106 (section 4) recommends, where memory is short."""
MIN_PASSES = 4
MAX_LANES = 4
MIN_ITERATIONS = 1000

_CEILING = KdfLimits()
_TRIAL_MEMORY_KIB = 64 * 1024
_TRIAL_ITERATIONS = 200_000
_KEY_SIZE = 64
_BESIDE_KIB = 24 * 1024


@dataclass(frozen=True, slots=True)
class KdfWish:
    """What the user asks of the KDF; None is left to us."""

    type: str = "argon2id"
    time_ms: int = 2000
    """How long unlocking is to take on this machine, in milliseconds."""
    memory_kib: int | None = None
    lanes: int | None = None
    iterations: int | None = None
    """Forced passes or iterations: nothing is measured."""
    hash: str = "sha256"
    """PBKDF2 only."""

    def check(self) -> None:
        """
        Raise UsageError for what cannot be, before anything is measured or made, UnsupportedFeature for the hash.

        Raises OutOfMemory if this process cannot have the memory that Argon2 is to take.
        """
        if self.time_ms <= 0:
            raise UsageError("--iter-time must be more than 0 milliseconds")
        find_hash(self.hash)
        if self.type == "pbkdf2":
            self._check_pbkdf2()
        elif self.type in ("argon2i", "argon2id"):
            self._check_argon2()
        else:
            raise UsageError(f"--pbkdf {self.type}: expected argon2id, argon2i or pbkdf2")

    def _check_pbkdf2(self) -> None:
        if self.memory_kib is not None or self.lanes is not None:
            raise UsageError("--pbkdf-memory and --pbkdf-parallel are for argon2")
        if self.iterations is not None and not MIN_ITERATIONS <= self.iterations <= _CEILING.iterations:
            raise UsageError(f"{self.iterations} iterations: expected {MIN_ITERATIONS} to {_CEILING.iterations}")

    def _check_argon2(self) -> None:
        lanes, memory = self.usual_lanes, self.usual_memory_kib
        if not 1 <= lanes <= MAX_LANES:
            raise UsageError(f"--pbkdf-parallel {lanes}: expected 1 to {MAX_LANES}")
        if not max(MIN_MEMORY_KIB, 8 * lanes) <= memory <= _CEILING.memory_kib:
            raise UsageError(f"--pbkdf-memory {memory}: expected {MIN_MEMORY_KIB} to {_CEILING.memory_kib} KiB")
        check_memory(self.type, memory)
        most = _CEILING.work_kib // memory
        if self.iterations is not None and not MIN_PASSES <= self.iterations <= most:
            raise UsageError(f"{self.iterations} passes: expected {MIN_PASSES} to {most}")

    @property
    def usual_lanes(self) -> int:
        """Threads of argon2."""
        return min(MAX_LANES, os.cpu_count() or 1) if self.lanes is None else self.lanes

    @property
    def usual_memory_kib(self) -> int:
        """Most memory of argon2. Raises OutOfMemory if there is less than it can do with."""
        if self.memory_kib is not None:
            return self.memory_kib
        usual = min(DEFAULT_MEMORY_KIB, memory_to_take_kib())
        if usual < max(MIN_MEMORY_KIB, 8 * self.usual_lanes):
            raise OutOfMemory(f"there is too little memory for {self.type}; take another KDF with --pbkdf pbkdf2")
        return usual


def choose_kdf(wish: KdfWish) -> Kdf:
    """Return a KDF with a new salt and the cost that is wished for. Raises UsageError for one that cannot be."""
    wish.check()
    return _choose_pbkdf2(wish) if wish.type == "pbkdf2" else _choose_argon2(wish)


def _choose_pbkdf2(wish: KdfWish) -> Kdf:
    iterations = wish.iterations
    if iterations is None:
        trial = Kdf("pbkdf2", bytes(SALT_SIZE), _TRIAL_ITERATIONS, hash=wish.hash)
        iterations = max(MIN_ITERATIONS, int(_TRIAL_ITERATIONS * wish.time_ms / _measure_ms(trial)))
    iterations = min(iterations, _CEILING.iterations)
    return Kdf("pbkdf2", os.urandom(SALT_SIZE), iterations, hash=wish.hash)


def _choose_argon2(wish: KdfWish) -> Kdf:
    lanes, memory = wish.usual_lanes, wish.usual_memory_kib
    if wish.memory_kib is None and memory < SMALL_MEMORY_KIB:
        log.warning(
            "memory is so short here that the keyslot takes %s of it only, which makes guessing cheaper; "
            "see --pbkdf-memory",
            in_mib(memory),
        )
    passes = wish.iterations
    if passes is None:
        passes, memory = _argon2_cost(wish, memory, lanes)
        if memory > (most := wish.usual_memory_kib):  # the trial itself has taken some
            passes, memory = passes * memory // most, most
        passes = min(passes, _CEILING.work_kib // memory)
    return Kdf(wish.type, os.urandom(SALT_SIZE), passes, memory_kib=memory, lanes=lanes)


def _argon2_cost(wish: KdfWish, memory: int, lanes: int) -> tuple[int, int]:
    """Return passes and memory (KiB): all the memory that the time allows with the fewest passes, then more passes."""
    trial_memory = min(memory, _TRIAL_MEMORY_KIB)
    trial = Kdf(wish.type, bytes(SALT_SIZE), MIN_PASSES, memory_kib=trial_memory, lanes=lanes)
    work = trial_memory * MIN_PASSES * wish.time_ms / _measure_ms(trial)  # KiB times passes
    if work >= memory * MIN_PASSES:
        return int(work / memory), memory
    return MIN_PASSES, max(trial_memory, int(work / MIN_PASSES))


def _measure_ms(kdf: Kdf) -> float:
    with SecretBytes.copy_of(b"a passphrase") as passphrase:
        start = time.monotonic()
        derive(kdf, passphrase, _KEY_SIZE).wipe()
        return max(0.01, (time.monotonic() - start) * 1000)


def memory_to_take_kib() -> int:
    """
    Return how much memory a KDF is to take at most by itself: half of what this process may ever have.

    And no more than half of what is free now, or all but 24 MiB, for the header is in memory, too, a few times.
    """
    bounds = memory_bounds(throttled=True)
    if not bounds:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2048
    return max(0, min(min(bound.limit_kib // 2, _share_of(bound.free_kib - bound.threads_kib)) for bound in bounds))


def _share_of(free_kib: int) -> int:
    return min(free_kib // 2, free_kib - _BESIDE_KIB)
