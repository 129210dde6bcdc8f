"""
A new LUKS1 header: phdr and the areas of its eight keyslots, as one run of bytes.

What is left open by the specification (LUKS1 1.2.3, figure 1 and section 4.1) follows `cryptsetup luksFormat`
(lib/luks1/keymanage.c, `LUKS_generate_phdr`): where the areas are, and that unused ones are random.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.kdf import pbkdf2_into
from lukshdrfs.luks.key_material import seal
from lukshdrfs.luks.luks1 import DISABLED, ENABLED, PHDR, SECTOR, SLOT, SLOTS
from lukshdrfs.luks.luks2_json import SALT_SIZE
from lukshdrfs.luks.model import STRIPES, Kdf
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import round_up

MAGIC = b"LUKS\xba\xbe"
AREA_ALIGNMENT = 4096
"""Bytes; the first area begins here, too."""
HEADER_ALIGNMENT = 1024 * 1024
"""Bytes; with 512-bit keys, the header takes 2 MiB."""
DIGEST_SIZE = 20
DIGEST_ITERATIONS = 100_000
"""The volume key has full entropy; this many only keep its digest from being a bare hash."""
NAME_SIZE = 31
"""Most bytes of a cipher's, mode's or hash's name (32, the last one a NUL)."""


@dataclass(frozen=True, slots=True)
class Luks1Format:
    """What a new volume is to be."""

    cipher: CipherSpec
    kdf: Kdf
    """PBKDF2; its hash is also that of the AF splitter and of the digest."""
    uuid: str
    detached: bool = True
    """Whether the data begin at the payload's start. Otherwise they begin behind the header."""


def format_luks1(form: Luks1Format, volume_key: SecretBytes, passphrase: SecretBytes) -> bytes:
    """
    Return the header of a new volume with one keyslot, a multiple of 1 MiB.

    Raises UnsupportedFeature for ciphers, keys and hashes that are not implemented, UsageError for a KDF that LUKS1
    does not have.
    """
    if form.kdf.type != "pbkdf2":
        raise UsageError(f"LUKS1 has no {form.kdf.type}; take pbkdf2, or LUKS2")
    if find_hash(form.kdf.hash).digest_size < DIGEST_SIZE:
        raise UsageError(f"LUKS1 takes no hash shorter than {DIGEST_SIZE} bytes, as {form.kdf.hash} is")
    with SectorCipher(form.cipher, volume_key, SECTOR):
        pass  # a key that the cipher refuses is found before anything is written
    material = seal(volume_key, passphrase, form.kdf, form.cipher, hash_name=form.kdf.hash, alignment=AREA_ALIGNMENT)
    size = round_up(AREA_ALIGNMENT + SLOTS * len(material), HEADER_ALIGNMENT)
    phdr = _phdr(form, volume_key, 0 if form.detached else size // SECTOR)
    slots = b"".join(_slot(number, form.kdf, AREA_ALIGNMENT + number * len(material)) for number in range(SLOTS))
    unused = os.urandom((SLOTS - 1) * len(material))
    return ((phdr + slots).ljust(AREA_ALIGNMENT, b"\0") + material + unused).ljust(size, b"\0")


def _phdr(form: Luks1Format, volume_key: SecretBytes, payload_sectors: int) -> bytes:
    cipher, _, mode = str(form.cipher).partition("-")
    salt = os.urandom(SALT_SIZE)
    with SecretBytes(DIGEST_SIZE) as digest:
        pbkdf2_into(digest, volume_key, salt, DIGEST_ITERATIONS, form.kdf.hash)
        return PHDR.pack(
            MAGIC,
            1,
            _name(cipher),
            _name(mode),
            _name(form.kdf.hash),
            payload_sectors,
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


def _slot(number: int, kdf: Kdf, offset: int) -> bytes:
    if number == 0:
        return SLOT.pack(ENABLED, kdf.iterations, kdf.salt, offset // SECTOR, STRIPES)
    return SLOT.pack(DISABLED, 0, b"", offset // SECTOR, STRIPES)
