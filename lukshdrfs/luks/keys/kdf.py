"""
Key derivation: PBKDF2 and Argon2, into locked memory, within a ceiling.

A header is untrusted input and says itself how much work its keyslots take, so the work has a limit. What
cryptsetup's own format makes stays under it: Argon2 with at most 4 GiB and 4 threads, times of seconds.
Sources: LUKS2 specification, keyslot object `kdf`; RFC 2898 (PBKDF2); RFC 9106 (Argon2).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from argon2.low_level import ARGON2_VERSION, Type, error_to_str, ffi, lib
from cryptography.exceptions import InternalError
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from lukshdrfs.cipher import gcrypt_pbkdf2_into
from lukshdrfs.errors import KeyslotError, OutOfMemory
from lukshdrfs.luks.keys.free_memory import in_mib, require_memory
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.model import Kdf
from lukshdrfs.secret import SecretBytes

_MAX_ITERATIONS = (1 << 31) - 1  # OpenSSL's; beyond it, `cryptography` panics instead of raising
_ITERATIONS_A_KIB = 4
_BESIDE_ARGON2_KIB = 1024
"""What threads, page tables and the rest of the program take at the same time."""
_ARGON2 = MappingProxyType({"argon2i": Type.I, "argon2id": Type.ID})


@dataclass(frozen=True, slots=True)
class KdfLimits:
    """The most that a header may ask for."""

    memory_kib: int = 4 * 1024 * 1024
    """Argon2's memory: 4 GiB, the most that cryptsetup makes (`crypt_pbkdf_get_limits`)."""
    work_kib: int = 1 << 28
    """Argon2's memory in KiB times its passes: 64 passes over 4 GiB, some minutes."""
    iterations: int = 1 << 30
    """PBKDF2's iterations: some minutes."""
    lanes: int = 64
    unlock_work_kib: int | None = None
    """What one secret may cost over all keyslots that it is tried on (see `work_of`); None: twice `work_kib`."""

    @property
    def most_unlock_work_kib(self) -> int:
        """What one secret may cost over all keyslots, as a number."""
        return 2 * self.work_kib if self.unlock_work_kib is None else self.unlock_work_kib

    def work_of(self, kdf: Kdf) -> int:
        """Return a KDF's work as KiB of Argon2's memory times passes; PBKDF2 by its share of what is allowed."""
        if kdf.type == "pbkdf2":
            return self.work_of_iterations(kdf.iterations)
        return kdf.memory_kib * kdf.iterations

    @staticmethod
    def work_of_iterations(iterations: int) -> int:
        """Return what PBKDF2's iterations are in KiB of Argon2's memory times passes: four take as long as one KiB."""
        return iterations // _ITERATIONS_A_KIB

    def check(self, kdf: Kdf) -> None:
        """Raise KeyslotError if the KDF asks for nothing, or for more than the ceiling."""
        if kdf.type == "pbkdf2":
            self._check("iterations", kdf.iterations, self.iterations)
            return
        self._check("cpus", kdf.lanes, self.lanes)
        self._check("memory (KiB)", kdf.memory_kib, self.memory_kib)
        self._check("time", kdf.iterations, max(1, self.work_kib // kdf.memory_kib))
        if kdf.memory_kib < 8 * kdf.lanes:
            raise KeyslotError(f"{kdf.type} needs 8 KiB for each of {kdf.lanes} lanes")

    @staticmethod
    def _check(what: str, value: int, ceiling: int) -> None:
        if not 0 < value <= ceiling:
            raise KeyslotError(
                f"its KDF cost is refused: {what} is {value}, allowed are 1 to {ceiling} (see --no-kdf-limit)"
            )


NO_LIMITS = KdfLimits(memory_kib=1 << 32, work_kib=1 << 64, iterations=1 << 32, lanes=1 << 24)
"""Everything that a header can ask for; what the machine cannot do still fails."""


def derive(kdf: Kdf, passphrase: SecretBytes, size: int) -> SecretBytes:
    """
    Return `size` bytes of key from a passphrase.

    Raises UnsupportedFeature for an unknown hash, OutOfMemory, and KeyslotError for parameters that the
    libraries refuse. Check the KDF against limits before.
    """
    key = SecretBytes(size)
    if kdf.type == "pbkdf2":
        pbkdf2_into(key, passphrase, kdf.salt, kdf.iterations, kdf.hash)
    else:
        _run_interruptibly(lambda: _argon2_into(key, passphrase, kdf))
    return key


def _run_interruptibly(work: Callable[[], None]) -> None:
    """Run in a thread: the main one can hear of Ctrl-C meanwhile, which C code does not let it for minutes."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by who asked for the work
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        raise OutOfMemory("the key derivation needs a thread, which cannot be had (ulimit -u, ulimit -v)") from None
    thread.join()
    if problems:
        raise problems[0]


def pbkdf2_into(key: SecretBytes, secret: SecretBytes, salt: bytes, iterations: int, hash_name: str) -> None:
    """Fill `key` from a secret by PBKDF2 with HMAC. Raises UnsupportedFeature for an unknown hash."""
    found = find_hash(hash_name)
    if not 0 < iterations <= _MAX_ITERATIONS:
        raise KeyslotError(f"pbkdf2 with {iterations} iterations: expected 1 to {_MAX_ITERATIONS}")

    def work() -> None:
        if found.algorithm is None:
            gcrypt_pbkdf2_into(key, secret, salt, iterations, found.gcrypt)
        else:
            PBKDF2HMAC(found.algorithm, len(key), salt, iterations).derive_into(secret.view, key.view)

    try:
        _run_interruptibly(work)
    except (ValueError, OverflowError, InternalError) as error:
        raise KeyslotError(f"pbkdf2 with {hash_name} and {iterations} iterations failed: {error}") from None


def _argon2_into(key: SecretBytes, passphrase: SecretBytes, kdf: Kdf) -> None:
    check_memory(kdf.type, kdf.memory_kib)
    # argon2.low_level.hash_secret_raw() would leave copies of the passphrase and of the key behind
    status = lib.argon2_hash(
        kdf.iterations,
        kdf.memory_kib,
        kdf.lanes,
        ffi.from_buffer(passphrase.view),
        len(passphrase),
        kdf.salt,
        len(kdf.salt),
        ffi.from_buffer(key.view),
        len(key),
        ffi.NULL,
        0,
        _ARGON2[kdf.type].value,
        ARGON2_VERSION,
    )
    if status == lib.ARGON2_MEMORY_ALLOCATION_ERROR:
        raise OutOfMemory(f"{kdf.type} needs {in_mib(kdf.memory_kib)} of memory, which cannot be had")
    if status == lib.ARGON2_THREAD_FAIL:
        raise OutOfMemory(f"{kdf.type} needs {kdf.lanes} threads, which cannot be had (ulimit -u, ulimit -v)")
    if status != lib.ARGON2_OK:
        raise KeyslotError(f"{kdf.type} failed: {error_to_str(status)}")


def check_memory(type_: str, memory_kib: int) -> None:
    """
    Raise OutOfMemory if Argon2 cannot have so much memory: what would otherwise end with the kernel's SIGKILL.

    Not the machine's memory counts, but the least that it, a control group or a limit leaves to this process.
    """
    require_memory(type_, memory_kib, beside_kib=memory_kib // 64 + _BESIDE_ARGON2_KIB)


DIGEST_ITERATIONS = 100_000
"""The volume key has full entropy; this many only keep its digest from being a bare hash."""
