"""A sector cipher with its key: encrypts and decrypts runs of sectors in place, in C, with the GIL released."""

from __future__ import annotations

import hmac
from types import MappingProxyType
from typing import Literal, Self

from lukshdrfs.cipher.spec import ESSIV_HASHES, CipherSpec, check_sector_size
from lukshdrfs.errors import LukshdrfsError, OutOfMemory, UnsupportedFeature
from lukshdrfs.native import ffi, lib
from lukshdrfs.secret import SecretBytes

Buffer = bytearray | memoryview

_IV_KINDS = MappingProxyType(
    {
        "": lib.IV_NONE,
        "null": lib.IV_NULL,
        "plain": lib.IV_PLAIN,
        "plain64": lib.IV_PLAIN64,
        "plain64be": lib.IV_PLAIN64BE,
        "essiv": lib.IV_ESSIV,
        "benbi": lib.IV_BENBI,
    }
)


Engine = Literal["openssl", "gcrypt"]


def usual_engine(spec: CipherSpec) -> Engine:
    """
    Return the library that serves a cipher when none is asked for: the faster one where both have it.

    libgcrypt takes a new IV in a fraction of OpenSSL's time and has AES with AVX2 (VAES): twice OpenSSL 3.0's
    speed in XTS at either sector size. OpenSSL is four times faster in ECB. benchmarks/ has the figures.
    """
    return "openssl" if spec.mode == "ecb" and spec.algorithm.openssl else "gcrypt"


class SectorCipher:
    """
    The cipher of a segment or of a keyslot area.

    Any number of threads may use one at the same time. Close it to wipe the key schedules.
    """

    def __init__(self, spec: CipherSpec, key: SecretBytes, sector_size: int, engine: Engine | None = None) -> None:
        """
        Prepare the cipher. `key` is copied into locked memory; `sector_size` is in bytes.

        `engine` names the library to use instead of the usual one; AES is in both.

        Raises UnsupportedFeature for keys that the cipher does not take: another size, or XTS with two
        equal halves, which OpenSSL and the kernel (in FIPS mode) refuse, as such a key encrypts without
        the tweak's protection (NIST SP 800-38E, FIPS 140-2 IG A.9).
        """
        spec.check_key_size(len(key))
        check_sector_size(sector_size)
        half = len(key) // 2
        if spec.mode == "xts" and hmac.compare_digest(key.view[:half], key.view[half:]):
            raise UnsupportedFeature(f"the two halves of the {spec} key are equal; such a key is refused")
        self.spec = spec
        self.sector_size = sector_size
        self._key = SecretBytes.copy_of(key.view)
        self._cipher = self._new(half if spec.mode == "xts" else len(key), engine or usual_engine(spec))

    def _new(self, single_key_size: int, engine: Engine) -> object:
        """Make the C object; `single_key_size` is the bytes of one of XTS's two keys, or of the only key."""
        spec, algorithm, status = self.spec, self.spec.algorithm, ffi.new("int *")
        key_bits = single_key_size * 8
        essiv_hash = ESSIV_HASHES.get(spec.iv_hash)
        openssl = engine == "openssl"
        openssl_name = f"{algorithm.openssl}-{key_bits}-{spec.mode.upper()}" if openssl else None
        essiv_bits = lib.hash_size(essiv_hash.encode()) * 8 if essiv_hash else 0
        cipher = lib.sector_cipher_new(
            openssl_name.encode() if openssl_name else ffi.NULL,
            f"{algorithm.openssl}-{essiv_bits}-ECB".encode() if openssl and essiv_hash else ffi.NULL,
            (algorithm.gcrypt or {}).get(single_key_size, "").encode(),
            spec.mode.encode(),
            algorithm.block_size,
            _IV_KINDS[spec.iv],
            essiv_hash.encode() if essiv_hash else ffi.NULL,
            ffi.from_buffer("uint8_t[]", self._key.view),
            len(self._key),
            self.sector_size,
            status,
        )
        _check(status[0], f"cipher {spec} with a {len(self._key) * 8}-bit key")
        return cipher

    def prepare(self, threads: int) -> None:
        """
        Have all ready that so many threads need at the same time: they take no more memory then.

        Raises OutOfMemory.
        """
        if self._cipher is None:
            raise LukshdrfsError(f"cipher {self.spec} is closed")
        _check(lib.sector_cipher_prepare(self._cipher, threads), f"cipher {self.spec}")

    def encrypt(self, data: Buffer, iv_sector: int) -> None:
        """
        Encrypt whole sectors in place; the first one's number is `iv_sector`, in units of 512 bytes.

        The number wraps at 2^64. Raises LukshdrfsError if the library fails; `data` is undefined then.
        """
        self._crypt(data, iv_sector, encrypt=True)

    def decrypt(self, data: Buffer, iv_sector: int) -> None:
        """Decrypt whole sectors in place; everything else as in `encrypt`."""
        self._crypt(data, iv_sector, encrypt=False)

    def _crypt(self, data: Buffer, iv_sector: int, *, encrypt: bool) -> None:
        if self._cipher is None:
            raise LukshdrfsError(f"cipher {self.spec} is closed")
        number = iv_sector & 0xFFFF_FFFF_FFFF_FFFF
        # given back before anything is raised: an exception's frames may be collected with it
        with ffi.from_buffer("uint8_t[]", data, require_writable=True) as view:
            status = lib.sector_cipher_crypt(self._cipher, encrypt, view, len(view), number)
        _check(status, f"cipher {self.spec}")

    @property
    def native(self) -> object:
        """The C object, which lives until `close`."""
        return self._cipher

    def close(self) -> None:
        """Wipe the key and its schedules. No thread may still be using the cipher."""
        cipher, self._cipher = self._cipher, None
        if cipher is not None:
            lib.sector_cipher_free(cipher)
        self._key.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_cipher", None) is not None and lib is not None:  # None while the interpreter ends
            self.close()


def _check(status: int, what: str) -> None:
    if status == lib.CIPHER_OK:
        return
    if status == lib.CIPHER_UNSUPPORTED:
        raise UnsupportedFeature(f"{what} is not supported by the installed OpenSSL and libgcrypt")
    if status == lib.CIPHER_BAD_KEY:
        raise UnsupportedFeature(f"{what}: the crypto library refuses this key")
    if status == lib.CIPHER_NO_MEMORY:
        raise OutOfMemory(f"{what}: out of memory")
    raise LukshdrfsError(f"{what} failed")
