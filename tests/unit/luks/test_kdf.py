"""Key derivation: the same keys as other libraries', and no more work than allowed."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import subprocess
import sys
from typing import Any

import argon2.low_level
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukshdrfs.errors import KeyslotError, UnsupportedFeature
from lukshdrfs.luks.keys.hashes import NAMES, find_hash
from lukshdrfs.luks.keys.kdf import KdfLimits, derive
from lukshdrfs.luks.model import Kdf
from lukshdrfs.secret import SecretBytes

HASHLIB = {
    "sha1": "sha1", "sha224": "sha224", "sha256": "sha256", "sha384": "sha384", "sha512": "sha512",
    "sha3-224": "sha3_224", "sha3-256": "sha3_256", "sha3-384": "sha3_384", "sha3-512": "sha3_512",
    "blake2b-512": "blake2b", "blake2s-256": "blake2s", "ripemd160": "ripemd160", "sm3": "sm3",
}  # fmt: skip
SALT = bytes(range(32))
PBKDF2 = Kdf("pbkdf2", SALT, 1000, hash="sha256")
ARGON2 = Kdf("argon2id", SALT, 1, memory_kib=64, lanes=2)


def derived(kdf: Kdf, passphrase: bytes, size: int) -> bytes:
    """Derive a key and return its bytes."""
    with SecretBytes.copy_of(passphrase) as secret, derive(kdf, secret, size) as key:
        return bytes(key.view)


passphrases = st.binary(max_size=200)
salts = st.binary(min_size=8, max_size=64)
key_sizes = st.sampled_from([16, 24, 32, 48, 64]) | st.integers(4, 130)


@settings(deadline=None, max_examples=60)
@given(passphrases, salts, key_sizes, st.integers(1, 50), st.sampled_from(sorted(HASHLIB)))
def test_pbkdf2_is_hashlibs(passphrase: bytes, salt: bytes, size: int, iterations: int, name: str) -> None:
    """With every hash that hashlib has too, the key is hashlib's."""
    expected = hashlib.pbkdf2_hmac(HASHLIB[name], passphrase, salt, iterations, size)

    assert derived(Kdf("pbkdf2", salt, iterations, hash=name), passphrase, size) == expected


@settings(deadline=None, max_examples=40)
@given(
    passphrases, salts, key_sizes, st.integers(1, 3), st.integers(1, 4), st.integers(0, 60),
    st.sampled_from(["argon2i", "argon2id"]),
)  # fmt: skip
def test_argon2_is_argon2_cffis(
    passphrase: bytes, salt: bytes, size: int, passes: int, lanes: int, more: int, kind: str
) -> None:
    """For any cost, also with memory that is no power of two, the key is that of the reference's own wrapper."""
    memory = 8 * lanes + more
    type_ = {"argon2i": argon2.low_level.Type.I, "argon2id": argon2.low_level.Type.ID}[kind]
    expected = argon2.low_level.hash_secret_raw(passphrase, salt, passes, memory, lanes, size, type_)

    assert derived(Kdf(kind, salt, passes, memory_kib=memory, lanes=lanes), passphrase, size) == expected


def test_argon2id_known_answer() -> None:
    """
    The reference implementation's own vector comes out.

    Source: phc-winner-argon2, src/test.c, `hashtest(version, 2, 8, 1, "password", "somesalt", …, Argon2_id)` with
    m = 2^8 KiB, version 0x13.
    """
    found = derived(Kdf("argon2id", b"somesalt", 2, memory_kib=256, lanes=1), b"password", 32)

    assert found.hex() == "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"


def test_pbkdf2_known_answer() -> None:
    """The vector of RFC 6070, section 2, with 4096 iterations of SHA-1 comes out."""
    found = derived(Kdf("pbkdf2", b"salt", 4096, hash="sha1"), b"password", 20)

    assert found.hex() == "4b007901b765489abead49d926f721d065a429c1"


@pytest.mark.parametrize("kdf", [PBKDF2, ARGON2, dataclasses.replace(ARGON2, type="argon2i")])
def test_an_empty_passphrase_is_one(kdf: Kdf) -> None:
    """The empty passphrase gives a key of its own."""
    assert derived(kdf, b"", 32) != derived(kdf, b"x", 32)


@pytest.mark.parametrize("name", NAMES)
def test_hashes_are_named_without_regard_to_case(name: str) -> None:
    """A hash is known under its name in any case, and its digest has the size that is claimed."""
    assert find_hash(name.upper()) is find_hash(name)
    assert find_hash(name.replace("-", "_")) is find_hash(name)
    if name in HASHLIB:
        assert find_hash(name).digest_size == hashlib.new(HASHLIB[name]).digest_size
    assert len(derived(dataclasses.replace(PBKDF2, iterations=1, hash=name.upper()), b"x", 100)) == 100


NAMES_ELSEWHERE = {
    "sha1": ["SHA-1", "ssl3-sha1", "1.3.14.3.2.26"],
    "sha256": ["sha-256", "SHA2-256", "2.16.840.1.101.3.4.2.1", "oid.2.16.840.1.101.3.4.2.1"],
    "sha384": ["sha-384", "sha2-384"],
    "sha512": ["SHA-512", "sha2_512"],
    "sha3-256": ["sha3_256", "SHA3-256"],
    "blake2b-512": ["BLAKE2b512", "BLAKE2B_512", "blake2b_512"],
    "blake2s-256": ["blake2s256", "BLAKE2S_256"],
    "ripemd160": ["rmd160", "RMD160", "RIPEMD-160", "ripemd", "1.3.36.3.2.1"],
    "sm3": ["SM3", "1.2.156.10197.1.401"],
}
"""OpenSSL's names (its `PROV_NAMES_*`), libgcrypt's, and those of the kernel's and cryptsetup's own tables."""


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, more in NAMES_ELSEWHERE.items() for other in more])
def test_a_hash_has_the_names_of_all_libraries(name: str, other: str) -> None:
    """Whatever library made the header: the same key comes out under each of the names."""
    assert find_hash(other).name == name
    expected = hashlib.pbkdf2_hmac(HASHLIB[name], b"a passphrase", SALT, 3, 32)
    assert derived(Kdf("pbkdf2", SALT, 3, hash=other), b"a passphrase", 32) == expected


@pytest.mark.parametrize(
    ("names", "key"),
    [
        # RFC 7836, appendix B: HMAC is a part of it; R 50.1.111-2016, annex A: PBKDF2 of "password" and "salt"
        (
            ("stribog512", "streebog512", "STRIBOG512", "md_gost12_512"),
            "64770af7f748c3b1c9ac831dbcfd85c26111b30a8a657ddc",
        ),
    ],
)
def test_hashes_that_only_libgcrypt_has(names: tuple[str, ...], key: str) -> None:
    """PBKDF2 with the Russian hash has the published value, under the names of libgcrypt, OpenSSL and the kernel."""
    for name in names:
        assert derived(Kdf("pbkdf2", b"salt", 1, hash=name), b"password", 24).hex() == key
    assert find_hash("TIGER").digest_size == 24


@pytest.mark.parametrize("name", ["", "sha", "md5", "crc32", "sha256 ", "sha256\0", "blake2s-128", "oid.", "ä"])
def test_unknown_hashes_are_refused_by_name(name: str) -> None:
    """A hash that is not implemented is UnsupportedFeature, and the message names it and those that are."""
    with pytest.raises(UnsupportedFeature) as caught:
        derived(dataclasses.replace(PBKDF2, hash=name), b"x", 32)
    assert repr(name) in str(caught.value)
    assert "sha256" in str(caught.value)


def changed(kdf: Kdf, field: str, value: int) -> Kdf:
    """Return a KDF with another cost."""
    fields: dict[str, Any] = {field: value}
    return dataclasses.replace(kdf, **fields)


LIMITS = KdfLimits(memory_kib=1000, work_kib=10_000, iterations=500, lanes=6)


@pytest.mark.parametrize(
    ("kdf", "field", "ceiling"),
    [
        (dataclasses.replace(PBKDF2, iterations=1), "iterations", 500),
        (dataclasses.replace(ARGON2, memory_kib=1000), "iterations", 10),
        (dataclasses.replace(ARGON2, memory_kib=100), "iterations", 100),
        (dataclasses.replace(ARGON2, memory_kib=999), "iterations", 10),
        (ARGON2, "memory_kib", 1000),
        (ARGON2, "lanes", 6),
    ],
)
def test_each_cost_has_a_ceiling(kdf: Kdf, field: str, ceiling: int) -> None:
    """A cost of 1 up to its ceiling is allowed; 0, one more than the ceiling, and anything beyond are refused."""
    LIMITS.check(changed(kdf, field, ceiling))
    for value in (0, -1, ceiling + 1, (1 << 32) - 1, 1 << 63):
        with pytest.raises(KeyslotError, match="refused"):
            LIMITS.check(changed(kdf, field, value))


def test_the_ceilings_take_what_cryptsetup_makes() -> None:
    """Argon2 with 4 GiB, 4 threads and some passes, and PBKDF2 for seconds, are within what is allowed by itself."""
    limits = KdfLimits()

    limits.check(dataclasses.replace(ARGON2, memory_kib=4 << 20, lanes=4, iterations=64))
    limits.check(dataclasses.replace(PBKDF2, iterations=100_000_000))


@pytest.mark.parametrize("lanes", [2, 5])
def test_argon2_needs_8_kib_for_each_lane(lanes: int) -> None:
    """Less memory than 8 KiB a lane, which Argon2 cannot do, is refused; exactly that much is not."""
    LIMITS.check(dataclasses.replace(ARGON2, lanes=lanes, memory_kib=8 * lanes))
    with pytest.raises(KeyslotError, match="8 KiB"):
        LIMITS.check(dataclasses.replace(ARGON2, lanes=lanes, memory_kib=8 * lanes - 1))


def test_what_argon2_itself_refuses_is_a_damaged_keyslot() -> None:
    """Parameters that the library refuses are KeyslotError with its words, not a bare status."""
    with pytest.raises(KeyslotError, match=r"(?i)salt"):
        derived(dataclasses.replace(ARGON2, salt=b"short"), b"x", 32)


@pytest.mark.parametrize("iterations", [0, 1 << 31, 1 << 63, 1 << 70])
def test_what_pbkdf2_itself_refuses_is_a_damaged_keyslot(iterations: int) -> None:
    """Iterations that the library does not take are KeyslotError."""
    with pytest.raises(KeyslotError):
        derived(dataclasses.replace(PBKDF2, iterations=iterations), b"x", 32)


def test_more_memory_than_there_is_is_told_and_not_taken() -> None:
    """A demand above free memory and swap is OutOfMemory, with both sizes, before any of it is allocated."""
    program = """
import resource
from lukshdrfs.errors import OutOfMemory
from lukshdrfs.luks.keys.kdf import KdfLimits, derive
from lukshdrfs.luks.model import Kdf
from lukshdrfs.secret import SecretBytes
kdf = Kdf("argon2id", bytes(32), 1, memory_kib=(1 << 32) - 1, lanes=4)  # 4 TiB
KdfLimits(memory_kib=1 << 32, work_kib=1 << 33).check(kdf)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    derive(kdf, SecretBytes.copy_of(b"x"), 32)
except OutOfMemory as error:
    print("refused", error.exit_code, str((1 << 32) // 1024 - 1) in str(error))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["refused 3 True", "True"]


def test_memory_that_the_process_may_not_have_is_told() -> None:
    """Where the machine has the memory but a limit of the process forbids it, that is OutOfMemory too."""
    program = """
import resource
from lukshdrfs.errors import OutOfMemory
from lukshdrfs.luks.keys.kdf import derive
from lukshdrfs.luks.model import Kdf
from lukshdrfs.secret import SecretBytes
secret = SecretBytes.copy_of(b"x")
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (32 << 20), resource.RLIM_INFINITY))
try:
    derive(Kdf("argon2id", bytes(32), 1, memory_kib=128 << 10, lanes=1), secret, 32)
except OutOfMemory as error:
    print("refused", error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["refused", "3"]


def test_the_kdf_leaves_the_passphrase_alone() -> None:
    """The passphrase is still there after a key was derived from it: the next keyslot needs it."""
    content = random.Random(1).randbytes(40)
    with SecretBytes.copy_of(content) as passphrase:
        for kdf in (PBKDF2, ARGON2):
            derive(kdf, passphrase, 32).wipe()
            assert bytes(passphrase.view) == content
