"""The AF splitter against its definition, written out in Python."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukshdrfs.cipher import af_merge, af_split
from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.luks.keys.hashes import NAMES, find_hash
from lukshdrfs.secret import SecretBytes

HASHLIB = {
    "sha1": "sha1", "sha224": "sha224", "sha256": "sha256", "sha384": "sha384", "sha512": "sha512",
    "sha3-224": "sha3_224", "sha3-256": "sha3_256", "sha3-384": "sha3_384", "sha3-512": "sha3_512",
    "blake2b-512": "blake2b", "blake2s-256": "blake2s", "ripemd160": "ripemd160",
}  # fmt: skip
"""The hashes that `hashlib` has, by the header's name."""

KEY_SIZES = st.sampled_from([1, 16, 19, 20, 21, 32, 33, 48, 64, 65, 100]) | st.integers(1, 160)


def diffuse(block: bytes, name: str) -> bytes:
    """Hash each piece behind its number (LUKS1 specification 1.2.3, section 2.4); the last one is cut to fit."""
    size = hashlib.new(HASHLIB[name]).digest_size
    pieces = [block[at : at + size] for at in range(0, len(block), size)]
    return b"".join(
        hashlib.new(HASHLIB[name], number.to_bytes(4, "big") + piece).digest()[: len(piece)]
        for number, piece in enumerate(pieces)
    )


def exclusive_or(left: bytes, right: bytes) -> bytes:
    """Return the bytewise sum without carry."""
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def reference_merge(material: bytes, key_size: int, name: str) -> bytes:
    """Return the key: each stripe but the last is added and diffused, the last is added."""
    stripes = [material[at : at + key_size] for at in range(0, len(material), key_size)]
    block = bytes(key_size)
    for stripe in stripes[:-1]:
        block = diffuse(exclusive_or(block, stripe), name)
    return exclusive_or(block, stripes[-1])


def split(key: bytes, stripes: int, name: str, seed: int) -> bytes:
    """Return material that merges to the key."""
    material = SecretBytes.copy_of(random.Random(seed).randbytes(len(key) * stripes))
    af_split(SecretBytes.copy_of(key), material, stripes, find_hash(name).gcrypt)
    return bytes(material.view)


def merge(material: bytes, key_size: int, stripes: int, name: str) -> bytes:
    """Return the key of some material."""
    with af_merge(SecretBytes.copy_of(material), key_size, stripes, find_hash(name).gcrypt) as key:
        return bytes(key.view)


@settings(deadline=None)
@given(KEY_SIZES, st.integers(1, 40), st.sampled_from(sorted(HASHLIB)), st.integers(0, 1 << 32))
def test_merge_is_what_the_specification_says(key_size: int, stripes: int, name: str, seed: int) -> None:
    """Any material merges to what the definition gives, also where a digest does not divide the key."""
    material = random.Random(seed).randbytes(key_size * stripes)

    assert merge(material, key_size, stripes, name) == reference_merge(material, key_size, name)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=160), st.integers(1, 40), st.sampled_from(NAMES), st.integers(0, 1 << 32))
def test_merge_undoes_split(key: bytes, stripes: int, name: str, seed: int) -> None:
    """What a key was split into merges to it again, with every hash that headers may name."""
    material = split(key, stripes, name, seed)

    assert merge(material, len(key), stripes, name) == key


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512", "ripemd160", "whirlpool"])
@pytest.mark.parametrize("key_size", [16, 32, 64])
def test_a_volume_keys_4000_stripes(name: str, key_size: int) -> None:
    """The number of stripes that LUKS has works too, against the definition where hashlib has the hash."""
    key = random.Random(key_size).randbytes(key_size)
    material = split(key, 4000, name, 1)

    assert merge(material, key_size, 4000, name) == key
    if name in HASHLIB:
        assert reference_merge(material, key_size, name) == key


@settings(deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_destroys_the_key(data: st.DataObject) -> None:
    """A single bit of any stripe decides over the key; of any but the last, over about half of its bits."""
    key, stripes = random.Random(2).randbytes(64), 50
    material = bytearray(split(key, stripes, "sha256", 3))
    bit = data.draw(st.integers(0, len(material) * 8 - 1))
    material[bit // 8] ^= 1 << bit % 8
    found = merge(bytes(material), 64, stripes, "sha256")

    assert found != key
    if bit // 8 < 64 * (stripes - 2):  # diffused at least twice, over one 32-byte digest at the least
        assert sum((a ^ b).bit_count() for a, b in zip(found, key, strict=True)) > 64


def test_split_keeps_the_random_stripes() -> None:
    """Only the last stripe is computed; all others stay the random bytes that they were."""
    key = bytes(range(32))
    material = split(key, 10, "sha256", 4)

    assert material[:-32] == random.Random(4).randbytes(320)[:-32]


def test_two_splits_of_a_key_have_nothing_in_common() -> None:
    """Other random bytes give another last stripe."""
    assert split(bytes(32), 10, "sha256", 5)[-32:] != split(bytes(32), 10, "sha256", 6)[-32:]


def test_an_unknown_hash_is_refused() -> None:
    """A hash that libgcrypt does not have is UnsupportedFeature, in both directions."""
    with pytest.raises(UnsupportedFeature, match="NO-HASH"):
        af_merge(SecretBytes(64), 32, 2, "NO-HASH")
    with pytest.raises(UnsupportedFeature, match="NO-HASH"):
        af_split(SecretBytes(32), SecretBytes(64), 2, "NO-HASH")


def test_no_fold_of_fewer_than_two_stripes_hides_an_unknown_hash() -> None:
    """With one stripe there is nothing to hash: the stripe is the key."""
    assert merge(b"the key itself", 14, 1, "sha256") == b"the key itself"
