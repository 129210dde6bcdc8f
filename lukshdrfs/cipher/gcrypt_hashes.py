"""Libgcrypt's hashes by its own names: which there are, PBKDF2 with them, and digests of many blocks at a time."""

from __future__ import annotations

from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.native import ffi, lib
from lukshdrfs.secret import SecretBytes


def gcrypt_hash_size(name: str) -> int:
    """Return the bytes of a hash's digest; 0 if libgcrypt has no such hash, or its digests have any size."""
    return int(lib.hash_size(name.encode()))


def gcrypt_pbkdf2_into(key: SecretBytes, secret: SecretBytes, salt: bytes, iterations: int, hash_name: str) -> None:
    """Fill `key` from a secret by PBKDF2 with HMAC. Raises UnsupportedFeature if libgcrypt refuses."""
    status = lib.pbkdf2(
        hash_name.encode(),
        ffi.from_buffer("uint8_t[]", secret.view),
        len(secret),
        salt,
        len(salt),
        iterations,
        ffi.from_buffer("uint8_t[]", key.view),
        len(key),
    )
    if status != lib.CIPHER_OK:
        raise UnsupportedFeature(f"pbkdf2 with {hash_name} is not supported by the installed libgcrypt")


def gcrypt_hash_blocks(name: str, data: memoryview, block: int) -> bytearray:
    """Return the digests of whole blocks of `block` bytes, without gaps. Raises UnsupportedFeature for other hashes."""
    count = len(data) // block
    digests = bytearray(count * gcrypt_hash_size(name))
    status = lib.hash_blocks(
        name.encode(), ffi.from_buffer("uint8_t[]", data), count, block, ffi.from_buffer("uint8_t[]", digests)
    )
    if status != lib.CIPHER_OK:
        raise UnsupportedFeature(f"the hash {name} is not supported by the installed libgcrypt")
    return digests
