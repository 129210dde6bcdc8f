"""Metadata of a reencryption that has begun: on the borders of what cryptsetup's own checks take."""

from __future__ import annotations

from typing import Any

import pytest
from support.golden import unpacked
from support.luks2_edit import Json, metadata, with_metadata

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.header import parse_header

HALF = unpacked("luks2-reencrypt-half.header.img.gz")
DECRYPTED = unpacked("luks2-decrypt-half.header.img.gz")


def is_taken(area: bytes, changed: Json) -> bool:
    """Tell whether a header with these metadata is valid."""
    try:
        parse_header(with_metadata(area, changed))
    except HeaderError:
        return False
    return True


@pytest.mark.parametrize(
    ("keyslot", "taken"),
    [
        ({}, True), ({"key_size": 2}, False), ({"key_size": 0}, False),
        *(({"mode": mode}, True) for mode in ("reencrypt", "encrypt", "decrypt")),
        *(({"direction": way}, True) for way in ("forward", "backward")),
        *(({"mode": mode}, False) for mode in ("", "forward", "Reencrypt", 1, None)),
        *(({"direction": way}, False) for way in ("", "encrypt", "up", 1, None)),
    ],
)  # fmt: skip
def test_mode_and_direction_are_those_that_there_are(keyslot: dict[str, Any], *, taken: bool) -> None:
    """And the keyslot's key is one byte long, for it has none."""
    changed = metadata(HALF)
    changed["keyslots"]["2"] |= keyslot
    assert is_taken(HALF, changed) == taken


@pytest.mark.parametrize(
    ("area", "taken"),
    [
        ({"type": "none"}, True), ({"type": "journal"}, True), ({"type": "checksum"}, False),
        *(({"type": kind, "hash": "sha256", "sector_size": size}, size in (512, 1024, 4096, 1 << 20))
          for kind in ("checksum", "datashift-checksum")
          for size in (0, 1, 2, 256, 511, 512, 513, 514, 768, 1024, 1536, 4096, 1 << 20)),
        ({"type": "checksum", "sector_size": 512}, False), ({"type": "checksum", "hash": 1, "sector_size": 512}, False),
        *(({"type": kind, "shift_size": size}, size in ("512", "1024", "1536"))
          for kind in ("datashift", "datashift-journal")
          for size in ("0", "1", "511", "512", "513", "1024", "1536", "x", 512)),
        ({"type": "datashift"}, False),
    ],
)  # fmt: skip
def test_how_it_is_made_safe(area: dict[str, Any], *, taken: bool) -> None:
    """Checksums are of sectors of a power of two from 512 bytes on, shifts are whole sectors of 512."""
    changed = metadata(HALF)
    changed["keyslots"]["2"]["area"] |= area
    assert is_taken(HALF, changed) == taken


@pytest.mark.parametrize(
    ("number", "change", "taken"),
    [
        ("0", {"encryption": "aes-xts-plain64"}, True), ("1", {"encryption": "aes-cbc-essiv:sha256"}, True),
        ("0", {"encryption": "serpent-xts-plain64"}, False), ("1", {"encryption": "serpent-xts-plain64"}, False),
        ("0", {"sector_size": 4096}, False), ("1", {"sector_size": 4096}, False),
        ("0", {"flags": ["in-reencryption"]}, True), ("1", {"flags": ["in-reencryption"]}, False),
        ("2", {"flags": ["backup-x"]}, False), ("3", {"flags": ["backup-x"]}, False),
        ("2", {"encryption": "serpent-xts-plain64"}, False), ("3", {"encryption": "serpent-xts-plain64"}, False),
    ],
)  # fmt: skip
def test_segments_are_of_the_old_kind_or_the_new_one(number: str, change: dict[str, Any], *, taken: bool) -> None:
    """Cipher and sector size are those of one of the two backups; what is being moved is of the final one's."""
    changed = metadata(HALF)
    changed["segments"][number] |= change
    assert is_taken(HALF, changed) == taken


def test_a_plain_segment_is_compared_by_its_type_alone() -> None:
    """Where a volume is decrypted, the plain part fits the plain backup, whatever else it says."""
    changed = metadata(DECRYPTED)
    assert is_taken(DECRYPTED, changed)
    changed["segments"]["1"] |= {"encryption": "aes-xts-plain64", "sector_size": 512}
    assert is_taken(DECRYPTED, changed)
    changed["segments"]["0"] |= {"encryption": "serpent-xts-plain64"}
    assert not is_taken(DECRYPTED, changed)
