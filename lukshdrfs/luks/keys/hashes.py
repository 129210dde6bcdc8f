"""
The hashes that LUKS headers name, and what the crypto libraries call them.

A header has the name that its maker's library knew: cryptsetup hands it to OpenSSL, libgcrypt, Nettle, Mbed TLS or the
kernel as it is, with few exceptions (its lib/crypto_backend/crypto_*.c, `crypt_hash_compat_name` and `hash_algs`). So a
hash has many names: `rmd160`, `RIPEMD-160` and `ripemd160` are one. Capital letters are as good as small ones.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes

from lukshdrfs.cipher import gcrypt_hash_size
from lukshdrfs.errors import UnsupportedFeature


class _Ripemd160(hashes.HashAlgorithm):
    """Known to `cryptography`'s OpenSSL by this name, though the package has no class for it."""

    name = "ripemd160"
    digest_size = 20
    block_size = 64


class _Whirlpool(hashes.HashAlgorithm):
    """In OpenSSL's legacy provider, which `cryptography` loads."""

    name = "whirlpool"
    digest_size = 64
    block_size = 64


@dataclass(frozen=True, slots=True)
class LuksHash:
    """A hash by its names."""

    name: str
    """The one that most libraries know."""
    gcrypt: str
    """Libgcrypt's, for the AF splitter, and for PBKDF2 where OpenSSL does not have the hash."""
    algorithm: hashes.HashAlgorithm | None
    """OpenSSL's, for PBKDF2 and checksums; None if it has none."""
    digest_size: int
    """Bytes of a digest."""


_SHA2_OIDS, _BLAKE2_OIDS = "2.16.840.1.101.3.4.2", "1.3.6.1.4.1.1722.12.2"

_TABLE: tuple[tuple[str, hashes.HashAlgorithm | None, tuple[str, ...]], ...] = (
    ("sha1", hashes.SHA1(), ("sha-1", "ssl3-sha1", "1.3.14.3.2.26")),  # noqa: S303 - old headers use it, as a KDF's hash only
    ("sha224", hashes.SHA224(), ("sha-224", "sha2-224", f"{_SHA2_OIDS}.4")),
    ("sha256", hashes.SHA256(), ("sha-256", "sha2-256", f"{_SHA2_OIDS}.1")),
    ("sha384", hashes.SHA384(), ("sha-384", "sha2-384", f"{_SHA2_OIDS}.2")),
    ("sha512", hashes.SHA512(), ("sha-512", "sha2-512", f"{_SHA2_OIDS}.3")),
    ("sha512-224", hashes.SHA512_224(), ("sha-512-224", "sha2-512-224", f"{_SHA2_OIDS}.5")),
    ("sha512-256", hashes.SHA512_256(), ("sha-512-256", "sha2-512-256", f"{_SHA2_OIDS}.6")),
    ("sha3-224", hashes.SHA3_224(), (f"{_SHA2_OIDS}.7",)),
    ("sha3-256", hashes.SHA3_256(), (f"{_SHA2_OIDS}.8",)),
    ("sha3-384", hashes.SHA3_384(), (f"{_SHA2_OIDS}.9",)),
    ("sha3-512", hashes.SHA3_512(), (f"{_SHA2_OIDS}.10",)),
    ("blake2b-512", hashes.BLAKE2b(64), ("blake2b512", f"{_BLAKE2_OIDS}.1.16")),
    ("blake2s-256", hashes.BLAKE2s(32), ("blake2s256", f"{_BLAKE2_OIDS}.2.8")),
    ("blake2b-384", None, (f"{_BLAKE2_OIDS}.1.12",)),
    ("blake2b-256", None, (f"{_BLAKE2_OIDS}.1.8",)),
    ("blake2b-160", None, (f"{_BLAKE2_OIDS}.1.5",)),
    ("blake2s-224", None, (f"{_BLAKE2_OIDS}.2.7",)),
    ("blake2s-160", None, (f"{_BLAKE2_OIDS}.2.5",)),
    ("ripemd160", _Ripemd160(), ("ripemd-160", "ripemd", "rmd160", "1.3.36.3.2.1")),
    ("whirlpool", _Whirlpool(), ("wp512", "1.0.10118.3.0.55")),
    ("sm3", hashes.SM3(), ("1.2.156.10197.1.401",)),
    ("stribog256", None, ("streebog256", "md-gost12-256", "1.2.643.7.1.1.2.2")),
    ("stribog512", None, ("streebog512", "md-gost12-512", "1.2.643.7.1.1.2.3")),
)
"""The usual name, OpenSSL's algorithm, and the other names in the libraries: with hyphens for `_` and `/`."""

_GCRYPT_NAMES = {"sha512-224": "SHA512_224", "sha512-256": "SHA512_256"}
_LEAST_DIGEST = 20
"""Bytes; cryptsetup makes no header with a shorter one (`LUKS_DIGESTSIZE`)."""


def _gcrypt_name(name: str) -> str:
    spelled = name.replace("-", "_") if name.startswith("blake2") else name
    return _GCRYPT_NAMES.get(name, spelled).upper()


def _known_hashes() -> dict[str, LuksHash]:
    found: dict[str, LuksHash] = {}
    for name, algorithm, others in _TABLE:
        gcrypt = _gcrypt_name(name)
        size = algorithm.digest_size if algorithm else gcrypt_hash_size(gcrypt)
        if size:
            found |= dict.fromkeys((name, *others), LuksHash(name, gcrypt, algorithm, size))
    return found


_HASHES = _known_hashes()

NAMES = tuple(dict.fromkeys(known.name for known in _HASHES.values()))


@functools.cache
def _of_gcrypt(name: str) -> LuksHash | None:
    """Return a hash that only libgcrypt knows, and cryptsetup where it is built with that."""
    size = gcrypt_hash_size(name) if re.fullmatch(r"[A-Za-z0-9_.-]+", name) else 0
    return LuksHash(name.lower(), name, None, size) if size >= _LEAST_DIGEST else None


def find_hash(name: str) -> LuksHash:
    """Return the hash that a header calls `name`. Raises UnsupportedFeature if there is none."""
    usual = re.sub("[_/]", "-", name.lower()).removeprefix("oid.")
    found = _HASHES.get(usual) or _of_gcrypt(name)
    if found is None:
        raise UnsupportedFeature(f"hash {name!r} is not supported (known: {', '.join(NAMES)})")
    return found


def is_same_hash(left: str, right: str) -> bool:
    """Whether two names are of one hash."""
    try:
        return left == right or find_hash(left).name == find_hash(right).name
    except UnsupportedFeature:
        return False
