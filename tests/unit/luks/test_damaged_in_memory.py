"""A damaged header in memory: made sense of for reading, or repaired where it is known what stood there."""

from __future__ import annotations

import random
import struct

import pytest
from support.edited import AREA, STRIPES, adding, after, empty, luks1_with_a_gap, opened, opens

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.damaged import with_damage_ignored
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.luks1.repair import repair_luks1

FIRST_AREA = 4096


@pytest.fixture(scope="module")
def luks1() -> bytes:
    """Return a LUKS1 header with a gap."""
    return luks1_with_a_gap()


# --- made sense of ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [(0, b"LUKX"), (448, b"damaged"), (256, b"\xff" * 8), (100, b"\1" * 3), (300, b"\1"), (600, b"\1")]
)
@pytest.mark.parametrize("copies", [(0,), (16384,), (0, 16384)])
def test_a_luks2_header_with_a_damaged_binary_part_is_made_sense_of(
    wrong: tuple[int, bytes], copies: tuple[int, ...]
) -> None:
    """Magic, checksum, place and what nobody needs are put right, in either copy; what is sound stays as it is."""
    area = after(empty(2), adding(b"x"))
    assert with_damage_ignored(area + b"behind") == area
    broken = bytearray(area)
    for at in copies:
        broken[at + wrong[0] : at + wrong[0] + len(wrong[1])] = wrong[1]
    mended = with_damage_ignored(bytes(broken))
    assert len(mended) == len(area)
    assert mended == area
    assert opened(mended, b"x") == 0


def test_a_luks2_header_that_is_cut_off_is_made_sense_of() -> None:
    """What is missing counts as NULs; the keyslots that are there open."""
    area = after(empty(2), adding(b"x"), adding(b"y"))
    mended = with_damage_ignored(area[: 32768 + AREA])
    assert (len(mended), mended[: 32768 + AREA]) == (len(area), area[: 32768 + AREA])
    assert not any(mended[32768 + AREA :])
    assert opened(mended, b"x") == 0
    for rubbish in (b"", b"x" * 5000, random.Random(1).randbytes(70_000)):
        assert with_damage_ignored(rubbish) == rubbish


@pytest.mark.parametrize(
    ("number", "place", "wrong"),
    [
        *((number, 0, struct.pack(">I", 7)) for number in (0, 1, 4)),  # the state
        *((number, 40, struct.pack(">I", 1)) for number in (0, 1, 4)),  # the area's place: in the header
        (4, 40, struct.pack(">I", (FIRST_AREA + AREA) // 512 - 1)),  # half in another one's
        (4, 40, struct.pack(">I", (FIRST_AREA + 3 * AREA) // 512 + 1)),  # half in one that is in use
        *((number, 44, struct.pack(">I", 3999)) for number in (0, 1, 4)),  # the stripes
    ],
)
def test_luks1_keyslots_that_make_no_sense_count_as_unused(luks1: bytes, number: int, place: int, wrong: bytes) -> None:
    """They are where they usually are then; all others open."""
    at = 208 + 48 * number + place
    mended = with_damage_ignored(luks1[:at] + wrong + luks1[at + 4 :])
    assert struct.unpack_from(">II32sII", mended, 208 + 48 * 2) == (
        0xDEAD, 0, bytes(32), (FIRST_AREA + 2 * AREA) // 512, STRIPES,
    )  # fmt: skip
    found = opens(mended)
    assert [found[secret] for secret in (b"three", b"seven")] == [3, 7]
    assert found[b"zero"] in ((0,) if number else (0, None))
    end = FIRST_AREA + 7 * AREA + 32 * STRIPES
    assert mended[FIRST_AREA:end] == luks1[FIRST_AREA:end]
    assert parse_header(mended)


def test_a_sound_luks1_header_is_left_as_it_is(luks1: bytes) -> None:
    """Nothing of it changes; cut off, it is as long as it says."""
    end = FIRST_AREA + 7 * AREA + 32 * STRIPES
    assert with_damage_ignored(luks1) == luks1[:end]
    mended = with_damage_ignored(luks1[: FIRST_AREA + AREA])
    assert mended == luks1[: FIRST_AREA + AREA].ljust(end, b"\0")
    assert opened(mended, b"zero") == 0
    for key_size in (0, 513):
        odd = luks1[:108] + struct.pack(">I", key_size) + luks1[112:]
        assert with_damage_ignored(odd)[:FIRST_AREA] == odd[:FIRST_AREA]


# --- repaired --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "wrong", "says"),
    [
        (208 + 48 + 40, struct.pack(">I", 9), ["keyslot 1 (not in use): its area is at sector 9, expected 264"]),
        (208 + 48 + 44, struct.pack(">I", 3), ["keyslot 1 (not in use): 3 stripes, expected 4000"]),
        (510, b"\x55\xaa", ["keyslot 6 (not in use): a partition table's signature lies in it"]),
        (40, b"ecb-plain\0\0", ["cipher mode 'ecb-plain': ecb takes no IV"]),
        (72, b"SHA256", ["hash 'SHA256' is not in small letters"]),
    ],
)
def test_what_is_known_of_luks1_is_put_back(luks1: bytes, at: int, wrong: bytes, says: list[str]) -> None:
    """What can only have been one thing is that again, said in a line; sound headers get no edit."""
    assert repair_luks1(luks1[:FIRST_AREA], len(luks1)) == ((), repair_luks1(luks1[:FIRST_AREA], len(luks1))[1])
    assert repair_luks1(luks1[:FIRST_AREA], len(luks1))[1].steps == ()
    damaged = luks1[:at] + wrong + luks1[at + len(wrong) :]
    found, edit = repair_luks1(damaged[:FIRST_AREA], len(luks1))
    assert list(found) == says
    mended = edit.applied_to(damaged)
    expected = luks1 if at != 40 else luks1[:40] + b"ecb".ljust(32, b"\0") + luks1[72:]
    assert mended[:FIRST_AREA] == expected[:FIRST_AREA]
    assert mended[FIRST_AREA:] == luks1[FIRST_AREA:]


def test_a_luks1_keyslot_in_use_is_beyond_repair(luks1: bytes) -> None:
    """What is wrong with it is not mended, and nothing else is half mended."""
    at = 208 + 48 * 3 + 44
    damaged = luks1[:at] + struct.pack(">I", 3) + luks1[at + 4 :]
    with pytest.raises(HeaderError):
        repair_luks1(damaged[:FIRST_AREA], len(luks1))
