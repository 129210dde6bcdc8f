"""
Cipher specifications under dm-crypt's names: `aes-xts-plain64`, `aes-cbc-essiv:sha256`, `serpent-cbc-plain`.

The table below is a whitelist. What is not in it is refused by name, null ciphers and the kernel's `capi:`
notation before all: a header that names those is how an attacker makes a volume store plaintext.
"""

from __future__ import annotations

from dataclasses import dataclass

from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.sectors import SECTOR_SIZES


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A block cipher and who implements it."""

    block_size: int
    """Bytes."""
    key_sizes: tuple[int, ...]
    """Bytes of one key; XTS takes two of them."""
    openssl: str | None = None
    """libcrypto's name, without key size and mode."""
    gcrypt: dict[int, str] | None = None
    """libgcrypt's names by key size in bytes."""


ALGORITHMS = {
    "aes": Algorithm(16, (16, 24, 32), "AES", {16: "AES", 24: "AES192", 32: "AES256"}),
    "serpent": Algorithm(16, (16, 24, 32), gcrypt={16: "SERPENT128", 24: "SERPENT192", 32: "SERPENT256"}),
    "twofish": Algorithm(16, (16, 32), gcrypt={16: "TWOFISH128", 32: "TWOFISH"}),
    "camellia": Algorithm(16, (16, 24, 32), gcrypt={16: "CAMELLIA128", 24: "CAMELLIA192", 32: "CAMELLIA256"}),
    "cast5": Algorithm(8, (16,), gcrypt={16: "CAST5"}),
}

IVS = ("null", "plain", "plain64", "plain64be", "essiv", "benbi")

ESSIV_HASHES = {
    "sha256": "SHA256",
    "sha1": "SHA1",
    "sha512": "SHA512",
    "md5": "MD5",
    "ripemd160": "RIPEMD160",
}
"""libgcrypt's names; only those whose digest is a key length of the cipher can be used with it."""


@dataclass(frozen=True, slots=True)
class CipherSpec:
    """What encrypts sectors: the block cipher, its mode, and how a sector's IV follows from its number."""

    cipher: str
    mode: str
    """`xts`, `cbc` or `ecb`."""
    iv: str
    """One of `IVS`; empty for `ecb`."""
    iv_hash: str = ""
    """The hash of `essiv`; empty for all others."""

    @classmethod
    def parse(cls, text: str) -> CipherSpec:
        """
        Parse dm-crypt's `cipher-mode-iv[:options]`.

        Old short forms mean what they mean to dm-crypt (Linux, dm-crypt.c, `crypt_ctr_cipher_old`):
        `aes` and `aes-plain` are `aes-cbc-plain`. Options of an IV other than `essiv` mean nothing to it, nor to QEMU
        (crypto/block-luks.c): `xts-plain64:sha256` is `xts-plain64`.

        Raises UnsupportedFeature if the specification names anything that is not implemented.
        """
        if text.startswith("capi:"):
            raise UnsupportedFeature(f"cipher {text!r} is in the kernel's capi: notation, which is refused")
        cipher, _, rest = text.partition("-")
        if cipher in ("null", "cipher_null", ""):
            raise UnsupportedFeature(f"cipher {text!r} does not encrypt and is refused")
        algorithm = ALGORITHMS.get(cipher)
        if algorithm is None:
            raise UnsupportedFeature(f"cipher {text!r} is not supported (unknown cipher {cipher!r})")
        if rest in ("", "plain"):
            rest = "cbc-plain"
        mode, _, iv_text = rest.partition("-")
        iv, _, options = iv_text.partition(":")
        spec = cls(cipher, mode, iv, options if iv == "essiv" else "")
        problem = spec._problem(algorithm)
        if problem:
            raise UnsupportedFeature(f"cipher {text!r} is not supported ({problem})")
        return spec

    def _problem(self, algorithm: Algorithm) -> str | None:
        if self.mode not in ("xts", "cbc", "ecb"):
            return f"unknown mode {self.mode!r}"
        if self.mode == "ecb":
            return "ecb takes no IV" if self.iv else None
        if self.mode == "xts" and algorithm.block_size != 16:
            return "xts needs a cipher with blocks of 16 bytes"
        if self.iv not in IVS:
            return f"unknown IV {self.iv!r}"
        if self.iv == "essiv":
            return None if self.iv_hash in ESSIV_HASHES else f"unknown hash {self.iv_hash!r} of essiv"
        return None

    def __str__(self) -> str:
        parts = (self.cipher, self.mode, self.iv)
        return "-".join(part for part in parts if part) + (f":{self.iv_hash}" if self.iv_hash else "")

    @property
    def algorithm(self) -> Algorithm:
        """The block cipher."""
        return ALGORITHMS[self.cipher]

    @property
    def key_sizes(self) -> tuple[int, ...]:
        """Legal sizes of the whole key, in bytes."""
        factor = 2 if self.mode == "xts" else 1
        return tuple(size * factor for size in self.algorithm.key_sizes)

    def check_key_size(self, key_size: int) -> None:
        """Raise UnsupportedFeature unless a key of `key_size` bytes fits the cipher."""
        if key_size not in self.key_sizes:
            legal = " or ".join(str(size * 8) for size in self.key_sizes)
            raise UnsupportedFeature(f"cipher {self} takes a key of {legal} bits, not {key_size * 8}")


def check_sector_size(sector_size: int) -> None:
    """Raise UnsupportedFeature unless `sector_size` (bytes) is one that dm-crypt has."""
    if sector_size not in SECTOR_SIZES:
        raise UnsupportedFeature(f"sector size {sector_size} is not one of {', '.join(map(str, SECTOR_SIZES))}")
