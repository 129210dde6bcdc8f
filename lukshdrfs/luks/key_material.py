"""
What lies in a keyslot's area: the volume key, spread by the AF splitter and encrypted with the passphrase's key.

Sources: LUKS1 specification 1.2.3, section 2.4 and figure 5; LUKS2 specification, section 4.
"""

from __future__ import annotations

from lukshdrfs.cipher import CipherSpec, SectorCipher, af_split
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.kdf import derive
from lukshdrfs.luks.model import STRIPES, Kdf
from lukshdrfs.luks.unlock import AREA_SECTOR_SIZE
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import round_up


def seal(
    volume_key: SecretBytes, passphrase: SecretBytes, kdf: Kdf, cipher: CipherSpec, *, hash_name: str, alignment: int
) -> bytes:
    """
    Return the key material of a keyslot, filled up with random bytes to a multiple of `alignment` bytes.

    `hash_name` is the AF splitter's. Raises what `derive` raises, and UnsupportedFeature.
    """
    size = len(volume_key) * STRIPES
    with (
        SecretBytes.random(round_up(size, alignment)) as material,
        derive(kdf, passphrase, len(volume_key)) as area_key,
        SectorCipher(cipher, area_key, AREA_SECTOR_SIZE) as area_cipher,
    ):
        af_split(volume_key, material, STRIPES, find_hash(hash_name).gcrypt)
        area_cipher.encrypt(material.view, 0)
        return bytes(material.view)
