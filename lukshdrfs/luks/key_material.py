"""
What lies in a keyslot's area: the volume key, spread by the AF splitter and encrypted with the passphrase's key.

Sources: LUKS1 specification 1.2.3, section 2.4 and figure 5; LUKS2 specification, section 4.
"""

from __future__ import annotations

from lukshdrfs.cipher import SectorCipher, af_split
from lukshdrfs.luks.edit import NewKeyslot
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.kdf import derive
from lukshdrfs.luks.model import STRIPES
from lukshdrfs.luks.unlock import AREA_SECTOR_SIZE
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import round_up

AREA_ALIGNMENT = 4096
"""Bytes; areas begin and end at multiples of it (cryptsetup, `LUKS_ALIGN_KEYSLOTS`)."""


def material_size(key_size: int) -> int:
    """Return the bytes of the area of a key with `key_size` bytes."""
    return round_up(key_size * STRIPES, AREA_ALIGNMENT)


def seal(volume_key: SecretBytes, passphrase: SecretBytes, slot: NewKeyslot) -> bytes:
    """
    Return the key material of a keyslot, filled up with random bytes to `material_size`.

    Raises what `derive` raises, and UnsupportedFeature.
    """
    slot.encryption.check_key_size(slot.area_key_size)
    with (
        SecretBytes.random(material_size(len(volume_key))) as material,
        derive(slot.kdf, passphrase, slot.area_key_size) as area_key,
        SectorCipher(slot.encryption, area_key, AREA_SECTOR_SIZE) as area_cipher,
    ):
        af_split(volume_key, material, STRIPES, find_hash(slot.hash).gcrypt)
        area_cipher.encrypt(material.view, 0)
        return bytes(material.view)
