"""What a new keyslot is like: as it is wished, else as cryptsetup makes it; and which key a header is about."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from support.edited import adding, after, empty

from lukshdrfs.errors import LukshdrfsError, UnsupportedFeature, UsageError
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.kdf_cost import KdfWish
from lukshdrfs.luks.keyslots import new_keyslot, volume_digest
from lukshdrfs.luks.model import Header

CHEAP = KdfWish("pbkdf2", iterations=1000, hash="sha512")


def header_of(version: int, encryption: str = "aes-xts-plain64") -> Header:
    """Return a header whose data have a cipher."""
    header = parse_header(after(empty(version), adding(b"x")))
    return dataclasses.replace(header, segments=(dataclasses.replace(header.segments[0], encryption=encryption),))


@pytest.mark.parametrize(
    ("data", "key_size", "wish", "expected"),
    [
        # by itself, an area has the data's cipher and the size of its key
        ("aes-xts-plain64", 64, {}, ("aes-xts-plain64", 64)),
        ("aes-xts-plain64", 32, {}, ("aes-xts-plain64", 32)),
        ("serpent-cbc-essiv:sha256", 32, {}, ("serpent-cbc-essiv:sha256", 32)),
        ("aes-xts-plain64", 32, {"area_key_size": 64}, ("aes-xts-plain64", 64)),
        # an area cannot have these, so it has cryptsetup's usual one
        ("unknown-xts-plain64", 32, {}, ("aes-xts-plain64", 64)),
        ("unknown-xts-plain64", 32, {"area_key_size": 32}, ("aes-xts-plain64", 32)),
        ("aes-xts-plain64", 20, {}, ("aes-xts-plain64", 64)),
        # one that is asked for has the largest key, unless that is asked for, too
        ("aes-xts-plain64", 32, {"encryption": "serpent-xts-plain64"}, ("serpent-xts-plain64", 64)),
        ("aes-xts-plain64", 32, {"encryption": "aes-cbc-plain64"}, ("aes-cbc-plain64", 32)),
        (
            "aes-xts-plain64", 32, {"encryption": "serpent-xts-plain64", "area_key_size": 32},
            ("serpent-xts-plain64", 32),
        ),
    ],
)  # fmt: skip
def test_the_cipher_of_a_new_luks2_area(
    data: str, key_size: int, wish: dict[str, Any], expected: tuple[str, int]
) -> None:
    """It is the data's where an area can have it."""
    slot = new_keyslot(header_of(2, data), key_size, CHEAP, **wish)
    assert (str(slot.encryption), slot.area_key_size) == expected
    assert (slot.hash, slot.priority) == ("sha512", None)
    assert (slot.kdf.type, slot.kdf.iterations, slot.kdf.hash, len(slot.kdf.salt)) == ("pbkdf2", 1000, "sha512", 32)
    assert new_keyslot(header_of(2, data), key_size, CHEAP, priority=2, **wish).priority == 2


@pytest.mark.parametrize(
    "wish",
    [
        {"encryption": "unknown-xts-plain64"},
        {"area_key_size": 63},
        {"encryption": "aes-cbc-plain64", "area_key_size": 64},
    ],
)  # fmt: skip
def test_an_area_that_could_not_be_opened_is_refused(wish: dict[str, Any]) -> None:
    """Unknown ciphers, and keys that do not fit, are told before anything is written."""
    with pytest.raises(LukshdrfsError):
        new_keyslot(header_of(2), 32, CHEAP, **wish)


def test_a_luks1_keyslot_has_the_headers_cipher_and_hash() -> None:
    """There is nothing to wish for but the KDF's cost."""
    slot = new_keyslot(header_of(1, "serpent-xts-plain64"), 32, CHEAP)
    assert (str(slot.encryption), slot.area_key_size, slot.hash) == ("serpent-xts-plain64", 32, "sha256")
    assert new_keyslot(header_of(1), 32, CHEAP, priority=1).priority == 1, "which is refused later"
    for wish in ({"encryption": "aes-xts-plain64"}, {"area_key_size": 32}):
        with pytest.raises(UsageError, match="the cipher of the data"):
            new_keyslot(header_of(1), 32, CHEAP, **wish)


def test_the_volumes_digest_is_that_of_its_first_encrypted_segment() -> None:
    """Segments without a digest are passed over; a header with nothing but these has no volume key."""
    header = header_of(2)
    digest, segment = header.digests[0], header.segments[0]
    later = dataclasses.replace(
        header,
        segments=(dataclasses.replace(segment, id=3, type="linear"), dataclasses.replace(segment, id=5)),
        digests=(
            dataclasses.replace(digest, segments=frozenset()),
            dataclasses.replace(digest, id=8, segments=frozenset({5})),
        ),
    )
    assert volume_digest(header) == digest
    assert volume_digest(later).id == 8
    with pytest.raises(UnsupportedFeature, match="no volume key"):
        volume_digest(dataclasses.replace(later, digests=later.digests[:1]))
