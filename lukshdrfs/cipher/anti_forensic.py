"""
The AF splitter: a key spread over stripes, so that losing any one of them loses the key.

Source: LUKS1 specification 1.2.3, section 2.4; cryptsetup's lib/luks1/af.c. The stripes of a 512-bit key are
256000 bytes, of which 8000 hashes are taken; that is done in C, where the pieces are wiped.
"""

from __future__ import annotations

from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.native import ffi, lib
from lukshdrfs.secret import SecretBytes


def af_merge(material: SecretBytes, key_size: int, stripes: int, gcrypt_hash: str) -> SecretBytes:
    """Return the key of `key_size` bytes from `stripes` stripes. Raises UnsupportedFeature for other hashes."""
    key = SecretBytes(key_size)
    _check(lib.af_merge(gcrypt_hash.encode(), _pointer(key), _pointer(material), key_size, stripes), gcrypt_hash)
    return key


def af_split(key: SecretBytes, material: SecretBytes, stripes: int, gcrypt_hash: str) -> None:
    """
    Complete `material`, whose stripes but the last are random already, so that it merges to `key`.

    Raises UnsupportedFeature for hashes that libgcrypt does not have.
    """
    _check(lib.af_split(gcrypt_hash.encode(), _pointer(key), _pointer(material), len(key), stripes), gcrypt_hash)


def _pointer(secret: SecretBytes) -> object:
    return ffi.from_buffer("uint8_t[]", secret.view)


def _check(status: int, gcrypt_hash: str) -> None:
    if status != lib.CIPHER_OK:
        raise UnsupportedFeature(f"hash {gcrypt_hash} is not supported by the installed libgcrypt")
