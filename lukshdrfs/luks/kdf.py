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
from pathlib import Path
from types import MappingProxyType

from argon2.low_level import ARGON2_VERSION, Type, error_to_str, ffi, lib
from cryptography.exceptions import InternalError
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from lukshdrfs.errors import KeyslotError, OutOfMemory
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.model import Kdf
from lukshdrfs.secret import SecretBytes

_MAX_ITERATIONS = (1 << 31) - 1  # OpenSSL's; beyond it, `cryptography` panics instead of raising
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

    def work() -> None:
        if kdf.type == "pbkdf2":
            pbkdf2_into(key, passphrase, kdf.salt, kdf.iterations, kdf.hash)
        else:
            _argon2_into(key, passphrase, kdf)

    _run_interruptibly(work)
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
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


def pbkdf2_into(key: SecretBytes, secret: SecretBytes, salt: bytes, iterations: int, hash_name: str) -> None:
    """Fill `key` from a secret by PBKDF2 with HMAC. Raises UnsupportedFeature for an unknown hash."""
    algorithm = find_hash(hash_name).algorithm
    if not 0 < iterations <= _MAX_ITERATIONS:
        raise KeyslotError(f"pbkdf2 with {iterations} iterations: expected 1 to {_MAX_ITERATIONS}")
    try:
        PBKDF2HMAC(algorithm, len(key), salt, iterations).derive_into(secret.view, key.view)
    except (ValueError, OverflowError, InternalError) as error:
        raise KeyslotError(f"pbkdf2 with {hash_name} and {iterations} iterations failed: {error}") from None


def _argon2_into(key: SecretBytes, passphrase: SecretBytes, kdf: Kdf) -> None:
    _check_available_memory(kdf.memory_kib)
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
        raise OutOfMemory(f"{kdf.type} needs {kdf.memory_kib // 1024} MiB of memory, which cannot be had")
    if status != lib.ARGON2_OK:
        raise KeyslotError(f"{kdf.type} failed: {error_to_str(status)}")


def _check_available_memory(memory_kib: int) -> None:
    """Say in time what would otherwise end with the kernel's out-of-memory killer (proc(5), meminfo)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    available = sizes.get("MemAvailable", memory_kib) + sizes.get("SwapFree", 0)
    if memory_kib > available:
        raise OutOfMemory(
            f"the key derivation needs {memory_kib // 1024} MiB of memory, {available // 1024} MiB are free"
        )
