"""
A new LUKS1 header, as one run of bytes: phdr and the areas of its eight keyslots, none of which is in use yet.

What is left open by the specification (LUKS1 1.2.3, figure 1 and section 4.1) follows `cryptsetup luksFormat`
(lib/luks1/keymanage.c, `LUKS_generate_phdr`): where the areas are, and that unused ones are random.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.keys.kdf import DIGEST_ITERATIONS, pbkdf2_into
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT, material_size
from lukshdrfs.luks.luks1.phdr import DIGEST_SIZE, DISABLED, MAGIC, PHDR, SLOT, SLOTS
from lukshdrfs.luks.model import SALT_SIZE, STRIPES
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR, round_up

HEADER_ALIGNMENT = 1024 * 1024
"""Bytes; with 512-bit keys, the header takes 2 MiB."""
NAME_SIZE = 31
"""Most bytes of a cipher's, mode's or hash's name (32, the last one a NUL)."""


@dataclass(frozen=True, slots=True)
class Luks1Format:
    """What a new volume is to be."""

    cipher: CipherSpec
    uuid: str
    hash: str = "sha256"
    """Of PBKDF2, AF splitter and digest alike."""
    data_offset: int = 0
    """Bytes on the payload; 0 for a detached header."""

    def written(self, volume_key: SecretBytes) -> bytes:
        """
        Return the header of a new volume, a multiple of 1 MiB.

        Raises UnsupportedFeature for ciphers, keys and hashes that are not implemented, UsageError for what does not
        fit a LUKS1 header.
        """
        if find_hash(self.hash).digest_size < DIGEST_SIZE:
            raise UsageError(f"LUKS1 takes no hash shorter than {DIGEST_SIZE} bytes, as {self.hash} is")
        size = header_size(len(volume_key))
        if self.data_offset % SECTOR or 0 < self.data_offset < size or self.data_offset // SECTOR >= 1 << 32:
            raise UsageError(
                f"the data cannot begin at byte {self.data_offset}: a LUKS1 header takes {size} bytes, and the offset "
                f"is a multiple of {SECTOR} below 2 TiB"
            )
        with SectorCipher(self.cipher, volume_key, SECTOR):
            pass  # a key that the cipher refuses is found before anything is written
        area_size = material_size(len(volume_key))
        slots = b"".join(
            SLOT.pack(DISABLED, 0, b"", (AREA_ALIGNMENT + number * area_size) // SECTOR, STRIPES)
            for number in range(SLOTS)
        )
        areas = os.urandom(SLOTS * area_size)
        return ((_phdr(self, volume_key) + slots).ljust(AREA_ALIGNMENT, b"\0") + areas).ljust(size, b"\0")


def header_size(key_size: int) -> int:
    """Return the bytes of the header of a volume whose key has `key_size` bytes."""
    return round_up(AREA_ALIGNMENT + SLOTS * material_size(key_size), HEADER_ALIGNMENT)


def _phdr(form: Luks1Format, volume_key: SecretBytes) -> bytes:
    cipher, _, mode = str(form.cipher).partition("-")
    salt = os.urandom(SALT_SIZE)
    with SecretBytes(DIGEST_SIZE) as digest:
        pbkdf2_into(digest, volume_key, salt, DIGEST_ITERATIONS, form.hash)
        return PHDR.pack(
            MAGIC,
            1,
            _name(cipher),
            _name(mode),
            _name(form.hash),
            form.data_offset // SECTOR,
            len(volume_key),
            bytes(digest.view),
            salt,
            DIGEST_ITERATIONS,
            form.uuid.encode("ascii"),
        )


def _name(text: str) -> bytes:
    data = text.encode()
    if len(data) > NAME_SIZE:
        raise UsageError(f"{text!r} is too long for a LUKS1 header")
    return data
