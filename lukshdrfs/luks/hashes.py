"""
The hashes that LUKS headers name, and what the crypto libraries call them.

cryptsetup takes OpenSSL's names without regard to case, and `blake2b-512` and `blake2s-256` beside them
(its lib/crypto_backend/crypto_openssl.c, `crypt_hash_compat_name`).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes

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
    """A hash by its two implementations' names."""

    algorithm: hashes.HashAlgorithm
    """For PBKDF2 and checksums."""
    gcrypt: str
    """For the AF splitter."""

    @property
    def digest_size(self) -> int:
        """Bytes of a digest."""
        return self.algorithm.digest_size


_HASHES = {
    "sha1": LuksHash(hashes.SHA1(), "SHA1"),  # noqa: S303 - old headers use it, as a KDF's hash only
    "sha224": LuksHash(hashes.SHA224(), "SHA224"),
    "sha256": LuksHash(hashes.SHA256(), "SHA256"),
    "sha384": LuksHash(hashes.SHA384(), "SHA384"),
    "sha512": LuksHash(hashes.SHA512(), "SHA512"),
    "sha3-224": LuksHash(hashes.SHA3_224(), "SHA3-224"),
    "sha3-256": LuksHash(hashes.SHA3_256(), "SHA3-256"),
    "sha3-384": LuksHash(hashes.SHA3_384(), "SHA3-384"),
    "sha3-512": LuksHash(hashes.SHA3_512(), "SHA3-512"),
    "blake2b-512": LuksHash(hashes.BLAKE2b(64), "BLAKE2B_512"),
    "blake2s-256": LuksHash(hashes.BLAKE2s(32), "BLAKE2S_256"),
    "ripemd160": LuksHash(_Ripemd160(), "RIPEMD160"),
    "whirlpool": LuksHash(_Whirlpool(), "WHIRLPOOL"),
    "sm3": LuksHash(hashes.SM3(), "SM3"),
}

NAMES = tuple(_HASHES)


def find_hash(name: str) -> LuksHash:
    """Return the hash that a header calls `name`. Raises UnsupportedFeature if there is none."""
    found = _HASHES.get(name.lower())
    if found is None:
        raise UnsupportedFeature(f"hash {name!r} is not supported (known: {', '.join(NAMES)})")
    return found
