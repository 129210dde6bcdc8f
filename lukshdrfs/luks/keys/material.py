"""
What lies in a keyslot's area: the volume key, spread by the AF splitter and encrypted with the passphrase's key.

Sources: LUKS1 specification 1.2.3, section 2.4 and figure 5; LUKS2 specification, section 4.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from lukshdrfs.cipher import CipherSpec, SectorCipher, af_merge, af_split
from lukshdrfs.errors import KeyslotError, LukshdrfsError, UnsupportedFeature, WrongKey
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.keys.kdf import KdfLimits, derive, pbkdf2_into
from lukshdrfs.luks.model import STRIPES, Digest, Header, Kdf, Keyslot
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR, round_up

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
        SectorCipher(slot.encryption, area_key, SECTOR) as area_cipher,
    ):
        af_split(volume_key, material, STRIPES, find_hash(slot.hash).gcrypt)
        area_cipher.encrypt(material.view, 0)
        return bytes(material.view)


def verify_digest(digest: Digest, volume_key: SecretBytes, limits: KdfLimits) -> None:
    """
    Raise WrongKey unless the key is the one that the digest is of, KeyslotError if the digest is damaged.

    HMAC takes a key and the same key with zeros behind it for equal, so callers compare the size first.
    """
    if digest.problem:
        raise KeyslotError(digest.problem)
    if digest.unsupported:
        raise UnsupportedFeature(f"digest {digest.id}: {digest.unsupported}")
    if not 0 < digest.iterations <= limits.iterations:
        raise KeyslotError(f"digest {digest.id}: {digest.iterations} iterations are refused")
    with SecretBytes(len(digest.digest)) as found:
        pbkdf2_into(found, volume_key, digest.salt, digest.iterations, digest.hash)
        if not hmac.compare_digest(found.view, digest.digest):
            raise WrongKey("the key does not fit the volume's digest")


def open_keyslot(header: Header, slot: Keyslot, passphrase: SecretBytes, limits: KdfLimits) -> SecretBytes:
    """
    Return what a keyslot holds, verified against the digest that is bound to it.

    Raises WrongKey if the passphrase is not this slot's, KeyslotError and UnsupportedFeature if the slot cannot
    be opened by any.
    """
    if slot.unsupported:
        raise UnsupportedFeature(slot.unsupported)
    if slot.problem or slot.kdf is None or slot.af is None:
        raise KeyslotError(slot.problem or "it holds no key")
    limits.check(slot.kdf)
    spec, gcrypt_hash = CipherSpec.parse(slot.area.encryption), find_hash(slot.af.hash).gcrypt
    spec.check_key_size(slot.area.key_size)
    digest = header.digest_of_keyslot(slot.id)
    if digest is None:
        raise KeyslotError("no digest is bound to it")
    # the last sector may reach past the stripes; cryptsetup's `AF_split_sectors` rounds up likewise
    material_size = round_up(slot.key_size * slot.af.stripes, SECTOR)
    start = slot.area.offset
    if start + material_size > len(header.area):
        raise KeyslotError("its area is cut off")
    with (
        derive(slot.kdf, passphrase, slot.area.key_size) as area_key,
        SecretBytes.copy_of(memoryview(header.area)[start : start + material_size]) as material,
    ):
        with SectorCipher(spec, area_key, SECTOR) as cipher:
            cipher.decrypt(material.view, 0)
        volume_key = af_merge(material, slot.key_size, slot.af.stripes, gcrypt_hash)
    try:
        verify_digest(digest, volume_key, limits)
    except LukshdrfsError:
        volume_key.wipe()
        raise
    return volume_key


@dataclass(frozen=True, slots=True)
class NewKeyslot:
    """What a keyslot to be made is like."""

    kdf: Kdf
    encryption: CipherSpec
    """Of the keyslot's area."""
    area_key_size: int
    """Bytes of the key that the area is encrypted with."""
    hash: str = "sha256"
    """Of the AF splitter."""
    priority: int | None = None
    """None: a new keyslot's is normal, a changed one keeps its own."""
