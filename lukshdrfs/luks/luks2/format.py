"""
A new LUKS2 header, as one run of bytes, without any keyslot yet.

What is left open by the specification follows `cryptsetup luksFormat` (lib/luks2/luks2_json_format.c), so that
its tools find nothing unusual.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.keys.free_memory import require_memory
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT, material_size
from lukshdrfs.luks.luks2.binary import BinaryHeader
from lukshdrfs.luks.luks2.layout import (
    KEYSLOTS_SIZE,
    MAX_KEYSLOTS_SIZE,
    METADATA_SIZE,
    METADATA_SIZES,
)
from lukshdrfs.luks.luks2.objects import check_label, metadata_of, new_digest, segment_object
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.secret import SecretBytes

_COPIES = 4
"""How often the bytes of a header are in memory while keyslots are put into it."""


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

    @property
    def segment(self) -> Json:
        """The one segment, as the metadata have it."""
        return segment_object(str(self.cipher), self.sector_size, self.data_offset, self.data_size)

    def written(self, volume_key: SecretBytes) -> bytes:
        """
        Return the header of a new volume, `self.size` bytes.

        Raises UnsupportedFeature for ciphers, keys and hashes that are not implemented, UsageError for sizes that no
        header has and for a label that is too long, OutOfMemory.
        """
        _check_sizes(self, len(volume_key))
        require_memory("a new header", _COPIES * self.size // 1024, beside_kib=4096)
        check_label(self.label, "label")
        check_label(self.subsystem, "subsystem")
        with SectorCipher(self.cipher, volume_key, self.sector_size):
            pass  # a key that the cipher refuses is found before anything is written
        binary = BinaryHeader(self.metadata_size, 1, self.label, self.uuid, self.subsystem)
        metadata = metadata_of(
            self.segment,
            new_digest(self.hash, volume_key, frozenset({0})),
            {},
            metadata_size=self.metadata_size,
            keyslots_size=self.keyslots_size,
        )
        copies = binary.written(metadata, secondary=False) + binary.written(metadata, secondary=True)
        # cryptsetup fills unused key material with random data too, so that used slots do not stand out
        return copies + os.urandom(self.keyslots_size)


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
