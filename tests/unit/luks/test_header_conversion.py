"""A header in another form: of the other version, as a backup, made sense of though it is damaged."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import pytest
from support.edited import (
    AREA,
    CIPHER,
    KEY,
    OPENS,
    STRIPES,
    UUID,
    adding,
    after,
    empty,
    luks1_with_a_gap,
    opened,
    opens,
)
from support.luks2_edit import metadata

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import LukshdrfsError, UnsupportedFeature, UsageError
from lukshdrfs.luks.backup import backup_of
from lukshdrfs.luks.convert import to_luks1, to_luks2
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.luks1.format import Luks1Format, header_size
from lukshdrfs.luks.model import Header, Kdf, Token
from lukshdrfs.secret import SecretBytes

MIB = 1 << 20
PHDR_SIZE = 592
FIRST_AREA = 4096
LEAST_ROOM = 2 * 16384 + 8 * AREA
"""Of a LUKS2 header that has room for eight keyslots of a 32-byte key."""


@pytest.fixture(scope="module")
def luks1() -> bytes:
    """Return a LUKS1 header with a gap."""
    return luks1_with_a_gap()


# --- a new LUKS1 header ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key_size", "size"), [(16, 1), (32, 2), (48, 2), (64, 2), (128, 4)])
def test_the_size_of_a_luks1_header(key_size: int, size: int) -> None:
    """4096 bytes, and eight areas of whole 4096 bytes behind it, in whole MiB: cryptsetup's 2 MiB for most keys."""
    assert header_size(key_size) == size * MIB


@pytest.mark.parametrize("data_offset", [0, 2 * MIB, 2 * MIB + 512, 2048 * MIB * 1024 - 512])
def test_a_new_luks1_header_is_the_specifications(data_offset: int) -> None:
    """All of figure 1 and figure 2 is there, in its place; what is not used is NULs, areas are random."""
    with SecretBytes.copy_of(KEY) as key:
        area = Luks1Format(CIPHER, UUID, "sha512", data_offset).written(key)
    magic, version, cipher, mode, hash_name, offset, key_size, _, _, iterations, uuid = struct.unpack_from(
        ">6sH32s32s32sII20s32sI40s", area
    )
    assert (magic, version, offset, key_size, iterations) == (b"LUKS\xba\xbe", 1, data_offset // 512, 32, 100_000)
    assert [text.rstrip(b"\0") for text in (cipher, mode, hash_name, uuid)] == [
        b"aes", b"xts-plain64", b"sha512", UUID.encode(),
    ]  # fmt: skip
    slots = [struct.unpack_from(">II32sII", area, 208 + 48 * number) for number in range(8)]
    assert slots == [(0xDEAD, 0, bytes(32), (FIRST_AREA + number * AREA) // 512, STRIPES) for number in range(8)]
    assert (len(area), area[PHDR_SIZE:FIRST_AREA], area[FIRST_AREA + 8 * AREA :]) == (
        2 * MIB, bytes(FIRST_AREA - PHDR_SIZE), bytes(2 * MIB - FIRST_AREA - 8 * AREA),
    )  # fmt: skip
    assert all(len(set(area[at : at + 4096])) > 200 for at in range(FIRST_AREA, FIRST_AREA + 8 * AREA, 4096))
    assert parse_header(area).segments[0].offset == data_offset


@pytest.mark.parametrize("data_offset", [512, 2 * MIB - 512, 2 * MIB + 1, 2 * MIB + 256, 2048 * MIB * 1024, 1 << 50])
def test_data_of_luks1_begin_behind_the_header_and_before_2_tib(data_offset: int) -> None:
    """An offset that the header's 32 bits of 512-byte sectors cannot say, or that lies in the header, is refused."""
    with SecretBytes.copy_of(KEY) as key, pytest.raises(UsageError, match=f"byte {data_offset}:"):
        Luks1Format(CIPHER, UUID, data_offset=data_offset).written(key)


@pytest.mark.parametrize(
    ("cipher", "hash_name", "key"),
    [
        ("aes-xts-plain64", "blake2s-128", KEY), ("aes-xts-plain64", "unknown", KEY),
        ("aes-xts-plain64", "sha256", KEY[:31]), ("aes-unknown-plain64", "sha256", KEY),
    ],
)  # fmt: skip
def test_what_could_not_be_opened_as_luks1_is_not_written(cipher: str, hash_name: str, key: bytes) -> None:
    """Unknown hashes and ciphers, keys that do not fit, and hashes shorter than the digest's 20 bytes are refused."""
    with SecretBytes.copy_of(key) as secret, pytest.raises(LukshdrfsError):
        Luks1Format(CipherSpec.parse(cipher), UUID, hash_name).written(secret)


# --- the other version -----------------------------------------------------------------------------------------------


def test_there_and_back_is_the_same_header(luks1: bytes) -> None:
    """What LUKS1 says, and the key material of what is in use, are the same bytes after both conversions."""
    there = to_luks2(parse_header(luks1), 16 * MIB)
    assert opens(there) == OPENS
    back = to_luks1(parse_header(there))
    assert opens(back) == OPENS
    assert (len(back), back[:FIRST_AREA]) == (len(luks1), luks1[:FIRST_AREA])
    for slot in (0, 3, 7):
        area = slice(FIRST_AREA + slot * AREA, FIRST_AREA + slot * AREA + 32 * STRIPES)
        assert back[area] == luks1[area]
    for slot in (1, 2, 4, 5, 6):
        area = slice(FIRST_AREA + slot * AREA, FIRST_AREA + slot * AREA + 4096)
        assert back[area] != luks1[area]
        assert len(set(back[area])) > 200, "random"


def test_a_converted_header_says_what_cryptsetups_would(luks1: bytes) -> None:
    """The metadata are those of cryptsetup's conversion, down to the places of areas."""
    header = dataclasses.replace(parse_header(luks1), uuid=UUID)
    moved = dataclasses.replace(header, segments=(dataclasses.replace(header.segments[0], offset=4 * MIB),))
    found = metadata(to_luks2(moved, 4 * MIB))
    assert list(found["keyslots"]) == found["digests"]["0"]["keyslots"] == ["0", "3", "7"]
    assert found["keyslots"]["3"] == {
        "type": "luks2", "key_size": 32,
        "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
        "area": {
            "type": "raw", "offset": str(32768 + 3 * AREA), "size": str(AREA), "encryption": "aes-xts-plain64",
            "key_size": 32,
        },
        "kdf": {
            "type": "pbkdf2", "hash": "sha256", "iterations": 13,
            "salt": "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=",
        },
    }  # fmt: skip
    assert found["segments"] == {
        "0": {
            "type": "crypt", "offset": str(4 * MIB), "size": "dynamic", "iv_tweak": "0",
            "encryption": "aes-xts-plain64", "sector_size": 512,
        }
    }  # fmt: skip
    digest = found["digests"]["0"]
    assert (digest["type"], digest["segments"], digest["hash"], digest["iterations"]) == (
        "pbkdf2", ["0"], "sha256", 100_000,
    )  # fmt: skip
    assert found["config"] == {"json_size": "12288", "keyslots_size": str(4 * MIB - 32768)}
    assert found["tokens"] == {}


@pytest.mark.parametrize("room", [LEAST_ROOM, LEAST_ROOM + 4095, LEAST_ROOM + 4096, 16 * MIB, 1 << 40])
def test_a_converted_header_takes_the_room_that_there_is(luks1: bytes, room: int) -> None:
    """Whole 4096 bytes up to the room, and no more than LUKS2's 128 MiB of keyslots."""
    size = min(room - room % 4096, 128 * MIB + 32768)
    if room > 1 << 30:
        luks1 = after(empty(1), adding(b"zero"))
    area = to_luks2(parse_header(luks1), room)
    assert len(area) == size
    assert opened(area, b"zero") == 0


def test_too_little_room_is_told(luks1: bytes) -> None:
    """Room for less than eight keyslots is not enough, and the message says how much is."""
    with pytest.raises(UnsupportedFeature, match=f"needs {LEAST_ROOM} bytes, there is room for {LEAST_ROOM - 1}"):
        to_luks2(parse_header(luks1), LEAST_ROOM - 1)


def test_a_keyslot_in_an_unknown_state_is_not_converted(luks1: bytes) -> None:
    """Its key might still be wanted, so it is not left behind."""
    area = luks1[: 208 + 48] + b"\0\0\0\7" + luks1[208 + 52 :]
    with pytest.raises(UnsupportedFeature, match="keyslot 1"):
        to_luks2(parse_header(area), 16 * MIB)


def segment_with(**changes: Any) -> Callable[[Header], Header]:
    """Return a change of the segment."""
    return lambda h: dataclasses.replace(h, segments=(dataclasses.replace(h.segments[0], **changes),))


def slot_with(**changes: Any) -> Callable[[Header], Header]:
    """Return a change of the last keyslot."""
    return lambda h: dataclasses.replace(h, keyslots=(*h.keyslots[:-1], dataclasses.replace(h.keyslots[-1], **changes)))


def header_with(**changes: Any) -> Callable[[Header], Header]:
    """Return a change of the header."""
    return lambda h: dataclasses.replace(h, **changes)


def digest_with(**changes: Any) -> Callable[[Header], Header]:
    """Return a change of the digest."""
    return lambda h: dataclasses.replace(h, digests=(dataclasses.replace(h.digests[0], **changes),))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: dataclasses.replace(h, segments=h.segments * 2), "more than one segment"),
        (segment_with(type="linear"), "not encrypted"),
        (segment_with(sector_size=4096), "4096"),
        (segment_with(size=MIB), "fixed size"),
        (segment_with(iv_tweak=8), "IVs"),
        (segment_with(flags=("x",)), "flags"),
        (segment_with(integrity="x"), "integrity"),
        (segment_with(offset=512 << 32), "2 TiB"),
        (header_with(tokens=(Token(0, "x", (), {}),)), "1 token"),
        (lambda h: dataclasses.replace(h, digests=h.digests * 2), "more than one digest"),
        (header_with(keyslots=()), "no keyslot"),
        (header_with(label="x"), "label"),
        (header_with(subsystem="x"), "subsystem"),
        (header_with(requirements=("x",)), "requires x"),
        (digest_with(problem="damaged"), "damaged"),
        (digest_with(digest=bytes(19)), "digest"),
        (slot_with(problem="bad"), "keyslot 7 cannot be used: bad"),
        (slot_with(kdf=None, unsupported="odd"), "keyslot 7 cannot be used: odd"),
        (slot_with(af=None, unsupported="odd"), "keyslot 7 cannot be used: odd"),
        (slot_with(id=8), "keyslot 8 is beyond the 8"),
        (slot_with(kdf=Kdf("argon2id", bytes(32), 4, memory_kib=64, lanes=1)), "argon2id"),
        (slot_with(kdf=Kdf("pbkdf2", bytes(32), 10, hash="sha1")), "keyslot 7 does not have the digest's hash sha256"),
        (digest_with(hash="sha512"), "does not have the digest's hash sha512"),
        (segment_with(encryption="serpent-xts-plain64"), "serpent-xts-plain64"),
    ],
)
def test_what_luks1_cannot_say_is_refused_by_name(
    luks1: bytes, change: Callable[[Header], Header], reason: str
) -> None:
    """Whatever LUKS1 has no word for is the reason; one thing at a time, and without it the header is converted."""
    header = parse_header(to_luks2(parse_header(luks1), 16 * MIB))
    to_luks1(header)
    with pytest.raises(UnsupportedFeature, match=reason):
        to_luks1(change(header))


def test_luks1_can_say_what_is_at_its_borders(luks1: bytes) -> None:
    """The last offset below 2 TiB fits, and a header before data that leave less than 2 MiB ends with its areas."""
    header = parse_header(to_luks2(parse_header(luks1), 16 * MIB))
    assert (
        parse_header(to_luks1(segment_with(offset=(512 << 32) - 512)(header))).segments[0].offset == (512 << 32) - 512
    )
    tight = to_luks1(segment_with(offset=2 * MIB - 512)(header))
    assert len(tight) == FIRST_AREA + 8 * AREA
    assert opens(tight) == OPENS
    assert len(to_luks1(segment_with(offset=2 * MIB)(header))) == 2 * MIB


# --- a backup --------------------------------------------------------------------------------------------------------


def test_a_backup_of_luks2_is_the_header() -> None:
    """All bytes of it, from the start to the end of the keyslots."""
    area = after(empty(2), adding(b"x"))
    assert backup_of(parse_header(area + bytes(MIB))) == area


def test_a_backup_of_luks1_has_nothing_that_lies_between(luks1: bytes) -> None:
    """Between the header and its keyslots are NULs, and the last area is filled up; all else is as it was."""
    dirty = luks1[:PHDR_SIZE] + b"\xee" * (FIRST_AREA - PHDR_SIZE) + luks1[FIRST_AREA:]
    saved = backup_of(parse_header(dirty))
    assert len(saved) == FIRST_AREA + 8 * AREA
    assert saved[:FIRST_AREA] == luks1[:PHDR_SIZE] + bytes(FIRST_AREA - PHDR_SIZE)
    end = FIRST_AREA + 7 * AREA + 32 * STRIPES
    assert saved[FIRST_AREA:end] == luks1[FIRST_AREA:end]
    assert opens(saved) == OPENS
    without = backup_of(parse_header(dirty[:PHDR_SIZE] + dirty[PHDR_SIZE:]))
    assert without == saved


def test_a_backup_keeps_keyslots_that_lie_unusually_low(luks1: bytes) -> None:
    """Where key material lies before byte 4096, as old versions put it, nothing is left out."""
    header = parse_header(luks1)
    low = dataclasses.replace(header.keyslots[0], area=dataclasses.replace(header.keyslots[0].area, offset=4095))
    area = b"\xee" * len(header.area)
    assert backup_of(dataclasses.replace(header, keyslots=(low, header.keyslots[1]), area=area)).startswith(area)
    assert not backup_of(dataclasses.replace(header, keyslots=(), area=area)).startswith(area)
