"""
A new LUKS2 header: metadata, binary headers and the keyslot's area, as one run of bytes.

What is left open by the specification follows `cryptsetup luksFormat` (lib/luks2/luks2_json_format.c), so that
its tools find nothing unusual.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.hashes import Hash

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.kdf import pbkdf2_into
from lukshdrfs.luks.key_material import seal
from lukshdrfs.luks.luks2_binary import BINARY, CHECKSUM_OFFSET, PRIMARY_MAGIC, SECONDARY_MAGIC
from lukshdrfs.luks.luks2_check import BINARY_SIZE
from lukshdrfs.luks.luks2_json import SALT_SIZE
from lukshdrfs.luks.model import STRIPES, Kdf
from lukshdrfs.secret import SecretBytes

METADATA_SIZE = 16 * 1024
KEYSLOTS_SIZE = 16 * 1024 * 1024 - 2 * METADATA_SIZE
AREA_ALIGNMENT = 4096
DIGEST_ITERATIONS = 100_000
"""The volume key has full entropy; this many only keep its digest from being a bare hash."""

LABEL_SIZE = 47
"""Most bytes of a label or subsystem (48, the last one a NUL)."""


@dataclass(frozen=True, slots=True)
class Luks2Format:
    """What a new volume is to be."""

    cipher: CipherSpec
    sector_size: int
    kdf: Kdf
    uuid: str
    hash: str = "sha256"
    """Of the AF splitter and of the digest."""
    label: str = ""
    subsystem: str = ""
    data_offset: int = 0
    """Bytes on the payload; 0 for a detached header."""


def format_luks2(form: Luks2Format, volume_key: SecretBytes, passphrase: SecretBytes) -> bytes:
    """
    Return the header of a new volume with one keyslot, 16 MiB.

    Raises UnsupportedFeature for ciphers, keys and hashes that are not implemented, UsageError for a label that
    is too long.
    """
    with SectorCipher(form.cipher, volume_key, form.sector_size):
        pass  # a key that the cipher refuses is found before anything is written
    area_offset = 2 * METADATA_SIZE
    area = seal(volume_key, passphrase, form.kdf, form.cipher, hash_name=form.hash, alignment=AREA_ALIGNMENT)
    metadata = _metadata(form, volume_key, area_offset, len(area))
    text = json.dumps(metadata, separators=(",", ":")).encode()
    json_area = text.ljust(METADATA_SIZE - BINARY_SIZE, b"\0")
    copies = _copy(form, json_area, 0) + _copy(form, json_area, METADATA_SIZE)
    # cryptsetup fills unused key material with random data too, so that used slots do not stand out
    rest = os.urandom(KEYSLOTS_SIZE - len(area))
    return copies + area + rest


def _base64(data: bytes | memoryview) -> str:
    return base64.b64encode(data).decode("ascii")


def _kdf_object(kdf: Kdf) -> dict[str, Any]:
    salt = _base64(kdf.salt)
    if kdf.type == "pbkdf2":
        return {"type": "pbkdf2", "hash": kdf.hash, "iterations": kdf.iterations, "salt": salt}
    return {
        "type": kdf.type,
        "time": kdf.iterations,
        "memory": kdf.memory_kib,
        "cpus": kdf.lanes,
        "salt": salt,
    }


def _digest_object(form: Luks2Format, volume_key: SecretBytes) -> dict[str, Any]:
    salt = os.urandom(SALT_SIZE)
    digest = SecretBytes(find_hash(form.hash).digest_size)
    pbkdf2_into(digest, volume_key, salt, DIGEST_ITERATIONS, form.hash)
    return {
        "type": "pbkdf2",
        "keyslots": ["0"],
        "segments": ["0"],
        "hash": form.hash,
        "iterations": DIGEST_ITERATIONS,
        "salt": _base64(salt),
        "digest": _base64(digest.view),
    }


def _metadata(form: Luks2Format, volume_key: SecretBytes, area_offset: int, area_size: int) -> dict[str, Any]:
    keyslot = {
        "type": "luks2",
        "key_size": len(volume_key),
        "af": {"type": "luks1", "stripes": STRIPES, "hash": form.hash},
        "area": {
            "type": "raw",
            "offset": str(area_offset),
            "size": str(area_size),
            "encryption": str(form.cipher),
            "key_size": len(volume_key),
        },
        "kdf": _kdf_object(form.kdf),
    }
    segment = {
        "type": "crypt",
        "offset": str(form.data_offset),
        "size": "dynamic",
        "iv_tweak": "0",
        "encryption": str(form.cipher),
        "sector_size": form.sector_size,
    }
    return {
        "keyslots": {"0": keyslot},
        "tokens": {},
        "segments": {"0": segment},
        "digests": {"0": _digest_object(form, volume_key)},
        "config": {
            "json_size": str(METADATA_SIZE - BINARY_SIZE),
            "keyslots_size": str(KEYSLOTS_SIZE),
        },
    }


def _field(text: str, size: int, what: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {text[:60]!r} is not text") from None
    if len(data) > size or b"\0" in data:
        raise UsageError(f"{what} {text[:60]!r} does not fit: at most {size} bytes, none of them NUL")
    return data


def _copy(form: Luks2Format, json_area: bytes, offset: int) -> bytes:
    """Return binary header and JSON area of one copy."""
    header = bytearray(
        BINARY.pack(
            SECONDARY_MAGIC if offset else PRIMARY_MAGIC,
            2,
            METADATA_SIZE,
            1,
            _field(form.label, LABEL_SIZE, "label"),
            b"sha256",
            os.urandom(64),
            form.uuid.encode("ascii"),
            _field(form.subsystem, LABEL_SIZE, "subsystem"),
            offset,
            b"",
            b"",
        ).ljust(BINARY_SIZE, b"\0")
    )
    algorithm = find_hash("sha256").algorithm
    digest = Hash(algorithm)
    digest.update(bytes(header) + json_area)
    header[CHECKSUM_OFFSET : CHECKSUM_OFFSET + algorithm.digest_size] = digest.finalize()
    return bytes(header) + json_area
