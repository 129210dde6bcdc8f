"""
A new LUKS2 header, as one run of bytes, without any keyslot yet.

What is left open by the specification follows `cryptsetup luksFormat` (lib/luks2/luks2_json_format.c), so that
its tools find nothing unusual.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.free_memory import require_memory
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.kdf import pbkdf2_into
from lukshdrfs.luks.key_material import AREA_ALIGNMENT, material_size
from lukshdrfs.luks.luks2_binary import BinaryHeader
from lukshdrfs.luks.luks2_check import BINARY_SIZE, MAX_KEYSLOTS_SIZE, METADATA_SIZES
from lukshdrfs.luks.luks2_json import SALT_SIZE
from lukshdrfs.secret import SecretBytes

METADATA_SIZE = 16 * 1024
KEYSLOTS_SIZE = 16 * 1024 * 1024 - 2 * METADATA_SIZE
DIGEST_ITERATIONS = 100_000
"""The volume key has full entropy; this many only keep its digest from being a bare hash."""

_COPIES = 4
"""How often the bytes of a header are in memory while keyslots are put into it."""

LABEL_SIZE = 47
"""Most bytes of a label or subsystem (48, the last one a NUL)."""


@dataclass(frozen=True, slots=True)
class Luks2Format:
    """What a new volume is to be."""

    cipher: CipherSpec
    sector_size: int
    uuid: str
    hash: str = "sha256"
    """Of the digest."""
    label: str = ""
    subsystem: str = ""
    data_offset: int = 0
    """Bytes on the payload; 0 for a detached header."""
    data_size: int | None = None
    """Bytes of data; None: as far as the payload goes."""
    metadata_size: int = METADATA_SIZE
    """Bytes of one copy of the metadata."""
    keyslots_size: int = KEYSLOTS_SIZE
    """Bytes set aside for keyslots."""

    @property
    def size(self) -> int:
        """Bytes of the header."""
        return 2 * self.metadata_size + self.keyslots_size


def format_luks2(form: Luks2Format, volume_key: SecretBytes) -> bytes:
    """
    Return the header of a new volume, `form.size` bytes.

    Raises UnsupportedFeature for ciphers, keys and hashes that are not implemented, UsageError for sizes that no
    header has and for a label that is too long, OutOfMemory.
    """
    _check_sizes(form, len(volume_key))
    require_memory("a new header", _COPIES * form.size // 1024, beside_kib=4096)
    check_label(form.label, "label")
    check_label(form.subsystem, "subsystem")
    with SectorCipher(form.cipher, volume_key, form.sector_size):
        pass  # a key that the cipher refuses is found before anything is written
    binary = BinaryHeader(form.metadata_size, 1, form.label, form.uuid, form.subsystem)
    metadata = _metadata(form, volume_key)
    copies = binary.written(metadata, secondary=False) + binary.written(metadata, secondary=True)
    # cryptsetup fills unused key material with random data too, so that used slots do not stand out
    return copies + os.urandom(form.keyslots_size)


def _check_sizes(form: Luks2Format, key_size: int) -> None:
    if form.metadata_size not in METADATA_SIZES:
        legal = ", ".join(f"{size >> 10}K" for size in METADATA_SIZES)
        raise UsageError(f"a metadata size of {form.metadata_size} bytes is not possible; expected one of {legal}")
    least = material_size(key_size)
    if form.keyslots_size % AREA_ALIGNMENT or not least <= form.keyslots_size <= MAX_KEYSLOTS_SIZE:
        raise UsageError(
            f"a keyslots area of {form.keyslots_size} bytes is not possible; expected {least} (one keyslot) "
            f"to {MAX_KEYSLOTS_SIZE} in steps of {AREA_ALIGNMENT}"
        )
    if form.data_offset and form.data_offset < form.size:
        raise UsageError(f"the data cannot begin at byte {form.data_offset}: the header takes {form.size} bytes")


def check_label(text: str, what: str) -> None:
    """Raise UsageError for a label or subsystem that a header cannot hold."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {text[:60]!r} is not text") from None
    if len(data) > LABEL_SIZE or b"\0" in data:
        raise UsageError(f"{what} {text[:60]!r} does not fit: at most {LABEL_SIZE} bytes, none of them NUL")


def base64_text(data: bytes | memoryview) -> str:
    """Return bytes as the metadata hold them."""
    return base64.b64encode(data).decode("ascii")


def digest_object(hash_name: str, volume_key: SecretBytes, segments: list[str]) -> dict[str, Any]:
    """Return a new digest of a key, without keyslots, bound to segments of these numbers."""
    salt = os.urandom(SALT_SIZE)
    digest = SecretBytes(find_hash(hash_name).digest_size)
    pbkdf2_into(digest, volume_key, salt, DIGEST_ITERATIONS, hash_name)
    return {
        "type": "pbkdf2",
        "keyslots": [],
        "segments": segments,
        "hash": hash_name,
        "iterations": DIGEST_ITERATIONS,
        "salt": base64_text(salt),
        "digest": base64_text(digest.view),
    }


def segment_object(form: Luks2Format) -> dict[str, Any]:
    """Return the segment of a new volume."""
    return {
        "type": "crypt",
        "offset": str(form.data_offset),
        "size": "dynamic" if form.data_size is None else str(form.data_size),
        "iv_tweak": "0",
        "encryption": str(form.cipher),
        "sector_size": form.sector_size,
    }


def _metadata(form: Luks2Format, volume_key: SecretBytes) -> dict[str, Any]:
    return {
        "keyslots": {},
        "tokens": {},
        "segments": {"0": segment_object(form)},
        "digests": {"0": digest_object(form.hash, volume_key, ["0"])},
        "config": {
            "json_size": str(form.metadata_size - BINARY_SIZE),
            "keyslots_size": str(form.keyslots_size),
        },
    }
