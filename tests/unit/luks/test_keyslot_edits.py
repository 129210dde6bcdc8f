"""Changes of keyslots as values: what each writes, where, in which order, and what opens in between and afterwards."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.edited import (
    AREA,
    KEY,
    STRIPES,
    UUID,
    Edit,
    adding,
    after,
    changing,
    empty,
    kdf,
    new_slot,
    opened,
    removing,
)
from support.luks2_edit import metadata, with_metadata

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import InUse, NoUsableKeyslot, UnsupportedFeature, UsageError
from lukshdrfs.luks import keyslots
from lukshdrfs.luks.edit import HeaderEdit, Write, wiping
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.material import NewKeyslot, material_size, seal
from lukshdrfs.luks.luks1.edit import set_uuid
from lukshdrfs.luks.luks2.edit import MAX_KEYSLOTS
from lukshdrfs.luks.model import Kdf, Priority
from lukshdrfs.secret import SecretBytes

ENTRY = struct.Struct(">II32sII")
"""A LUKS1 keyslot (specification 1.2.3, figure 2): active, iterations, salt, offset in sectors, stripes."""
ENABLED, DISABLED = 0x00AC71F3, 0x0000DEAD


def states(area: bytes, edit: HeaderEdit) -> list[bytes]:
    """Return what may be there when the power fails: all steps so far, and of the next one any one write, or all."""
    found = [area]
    for step in edit.steps:
        found += [HeaderEdit(((write,),)).applied_to(area) for write in step]
        area = HeaderEdit((step,)).applied_to(area)
        found.append(area)
    return found


def entry(area: bytes, number: int) -> tuple[int, int, bytes, int, int]:
    """Return a LUKS1 keyslot's entry."""
    found: tuple[int, int, bytes, int, int] = ENTRY.unpack_from(area, 208 + 48 * number)
    return found


both = pytest.mark.parametrize("version", [1, 2])


@settings(deadline=None, max_examples=8)
@given(
    st.sampled_from([1, 2]),
    st.lists(st.tuples(st.sampled_from(["add", "add", "change", "remove"]), st.integers(0, 7)), max_size=7),
)
def test_keyslots_are_those_that_were_made(version: int, orders: list[tuple[str, int]]) -> None:
    """After any edits, each keyslot opens with the passphrase that it got last, and there are no others."""
    area, model = empty(version, 9), dict[int, bytes]()
    for turn, (order, number) in enumerate(orders):
        passphrase = b"passphrase %d" % turn
        before = dict(model)
        if order == "remove":
            model.pop(number, None)
            edit = removing(number)
        elif order == "change":
            model |= {number: passphrase} if number in model else {}
            edit = changing(number, passphrase, salt=turn)
        else:
            model.setdefault(number, passphrase)
            edit = adding(passphrase, number, salt=turn)
        if before == model:
            with pytest.raises((NoUsableKeyslot, UsageError)):
                edit(parse_header(area))
            continue
        made = edit(parse_header(area))
        for state in states(area, made):
            assert all(opened(state, old, at) == at for at, old in before.items() if at != number)
            if order == "change":
                assert opened(state, before[number]) is not None or opened(state, passphrase) is not None
        area = made.applied_to(area)
        assert not made.in_place
        assert {slot.id for slot in parse_header(area).keyslots} == set(model)
        assert parse_header(area).digests[0].keyslots == set(model)
        assert {number: opened(area, secret) for number, secret in model.items()} == {n: n for n in model}
        gone = [old for at, old in before.items() if model.get(at) != old]
        assert [opened(area, old) for old in gone] == [None] * len(gone)


@both
def test_a_new_keyslot_has_the_first_number_that_is_free(version: int) -> None:
    """Numbers are given from 0 on, and one that has become free is given again; a number that is asked for is had."""
    area = empty(version, 6)
    for number in range(3):
        area = after(area, adding(b"secret %d" % number))
        assert opened(area, b"secret %d" % number) == number
    area = after(area, removing(1), adding(b"again"), adding(b"seven", 7))
    assert [opened(area, secret) for secret in (b"again", b"seven", b"secret 1")] == [1, 7, None]
    for taken in (0, 1, 7):
        with pytest.raises(UsageError, match=f"keyslot {taken} is in use"):
            after(area, adding(b"x", taken))


@pytest.mark.parametrize(("version", "most"), [(1, 8), (2, MAX_KEYSLOTS)])
def test_there_are_no_more_keyslots_than_that(version: int, most: int) -> None:
    """The last number can be had, the one behind it cannot; when all are in use that is told."""
    area = after(empty(version, 40), adding(b"last", most - 1))
    assert opened(area, b"last", most - 1) == most - 1
    for number in (most, most + 1):
        with pytest.raises(UsageError, match=f"no keyslot {number}.* 0 to {most - 1}"):
            after(area, adding(b"x", number))
    area = after(area, *[adding(b"x")] * (most - 1))
    assert {slot.id for slot in parse_header(area).keyslots} == set(range(most))
    with pytest.raises(UsageError, match=f"all {most} keyslots are in use"):
        after(area, adding(b"x"))


@both
@pytest.mark.parametrize("edit", [removing(5), changing(5, b"x")])
def test_a_keyslot_that_is_not_in_use_is_told_by_its_number(version: int, edit: Edit) -> None:
    """What is not there is neither changed nor removed."""
    with pytest.raises(NoUsableKeyslot, match="keyslot 5 is not in use"):
        edit(parse_header(after(empty(version), adding(b"one"))))


@both
@pytest.mark.parametrize("edit", [removing(1), changing(1, b"new")])
def test_old_key_material_is_overwritten(version: int, edit: Edit) -> None:
    """Of the area that held the old secret, every sector is another one afterwards."""
    before = after(empty(version), adding(b"one"), adding(b"two", salt=1))
    slot = parse_header(before).keyslot(1)
    assert slot is not None
    later = edit(parse_header(before)).applied_to(before)
    for place in range(slot.area.offset, slot.area.offset + STRIPES * len(KEY), 512):
        assert later[place : place + 512] != before[place : place + 512]


@both
@pytest.mark.parametrize("edit", [adding(b"new"), adding(b"new", 3), removing(1), changing(1, b"new", salt=9)])
def test_nothing_is_written_but_what_belongs_to_the_keyslot(version: int, edit: Edit) -> None:
    """Other keyslots' areas, and all behind the header, keep their bytes."""
    before = after(empty(version, 5), adding(b"one"), adding(b"two", salt=1), adding(b"three", salt=2))
    header = parse_header(before)
    made = edit(header)
    assert all(0 <= write.offset < write.end <= len(before) for step in made.steps for write in step)
    for number in (0, 2):
        slot = header.keyslot(number)
        assert slot is not None
        area = slice(slot.area.offset, slot.area.offset + slot.area.size)
        assert made.applied_to(before)[area] == before[area]


# --- LUKS1 -----------------------------------------------------------------------------------------------------------


def test_entries_of_luks1_are_the_specifications() -> None:
    """A keyslot in use says its KDF, one that was removed says nothing; place and stripes stay, in 512-byte sectors."""
    area = after(empty(1), adding(b"one", salt=3), adding(b"two", salt=4), removing(0))
    places = [8 + number * AREA // 512 for number in range(8)]

    assert entry(area, 0) == (DISABLED, 0, bytes(32), places[0], STRIPES)
    assert entry(area, 1) == (ENABLED, 14, bytes([4]) * 32, places[1], STRIPES)
    assert [entry(area, number)[3] for number in range(8)] == places


@pytest.mark.parametrize("edit", [adding(b"new"), changing(0, b"new", salt=9), removing(0)])
def test_a_luks1_keyslot_is_made_before_and_unmade_after_its_state(edit: Edit) -> None:
    """Whatever else of a keyslot is written, it is not in use at that moment; its state is written by itself."""
    area = after(empty(1), adding(b"old"))
    for step in edit(parse_header(area)).steps:
        for number in range(8):
            if entry(HeaderEdit((step,)).applied_to(area), number)[1:] != entry(area, number)[1:]:
                assert entry(area, number)[0] == entry(HeaderEdit((step,)).applied_to(area), number)[0] == DISABLED
        states_of_step = [write for write in step if len(write.data) == 4]
        assert not states_of_step or len(step) == 1
        area = HeaderEdit((step,)).applied_to(area)


def test_a_full_luks1_header_is_changed_in_place_alone() -> None:
    """Without a free keyslot a change is refused, unless it may be in place: then it is one step, and says so."""
    area = after(empty(1), *[adding(b"secret %d" % number, salt=number) for number in range(8)])
    with pytest.raises(UsageError, match="--in-place"):
        after(area, changing(5, b"new"))
    edit = changing(5, b"new", in_place=True, salt=77)(parse_header(area))
    assert (edit.in_place, len(edit.steps)) == (True, 1)
    area = edit.applied_to(area)
    assert (opened(area, b"new"), opened(area, b"secret 5")) == (5, None)
    assert [opened(area, b"secret %d" % number, number) for number in (0, 4, 6, 7)] == [0, 4, 6, 7]
    assert entry(area, 5)[:3] == (ENABLED, 87, bytes([77]) * 32)
    # with a free one, what may be in place need not be
    assert not changing(5, b"x", in_place=True)(parse_header(after(area, removing(0)))).in_place


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ({"kdf": Kdf("argon2id", bytes(32), 4, memory_kib=64, lanes=1)}, UsageError),
        ({"kdf": dataclasses.replace(kdf(), hash="sha512")}, UsageError),
        ({"hash": "sha512"}, UsageError),
        ({"encryption": CipherSpec.parse("serpent-xts-plain64")}, UsageError),
        ({"encryption": CipherSpec.parse("aes-xts-plain")}, UsageError),
        ({"area_key_size": 64}, UsageError),
        ({"priority": Priority.NORMAL}, UnsupportedFeature),
        ({"priority": Priority.IGNORE}, UnsupportedFeature),
    ],
)
def test_what_a_luks1_keyslot_cannot_be_is_refused(wish: dict[str, Any], error: type[Exception]) -> None:
    """KDF, hash and cipher are the header's, and there is no priority; a hash's other names and cases are the same."""
    area = after(empty(1), adding(b"one"))
    header, slot = parse_header(area), dataclasses.replace(new_slot(), **wish)
    with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(b"x") as secret:
        for make in (keyslots.add_keyslot, lambda *what: keyslots.change_keyslot(header, 0, *what[1:])):
            with pytest.raises(error):
                make(header, key, secret, slot)
        same = dataclasses.replace(slot, **vars_of(new_slot()), hash="SHA-256")
        assert keyslots.add_keyslot(header, key, secret, same)[0] == 1


def vars_of(slot: NewKeyslot) -> dict[str, Any]:
    """Return all of a keyslot's wishes but the hash."""
    return {field.name: getattr(slot, field.name) for field in dataclasses.fields(slot) if field.name != "hash"}


def test_a_luks1_uuid_is_written_in_its_place() -> None:
    """It is 40 bytes at 168, filled up with NULs, and all else stays."""
    area = empty(1)
    other = UUID.replace("4", "a")
    later = set_uuid(other).applied_to(area)
    assert later[168:208] == other.encode() + bytes(4)
    assert (later[:168], later[208:]) == (area[:168], area[208:])


# --- values ----------------------------------------------------------------------------------------------------------


def test_edits_one_behind_the_other() -> None:
    """Steps keep their order, and one part in place makes all of it so; a write ends before the header does."""
    one, two = HeaderEdit(((Write(0, b"ab"),),)), HeaderEdit(((Write(1, b"c"),), (Write(3, b"d"),)), in_place=True)
    assert one.then(two) == HeaderEdit(one.steps + two.steps, in_place=True)
    assert two.then(one) == HeaderEdit(two.steps + one.steps, in_place=True)
    assert not one.then(one).in_place
    assert one.then(two).applied_to(b"....") == b"ac.d"
    with pytest.raises(ValueError, match="4 of 3"):
        two.applied_to(b"...")
    [[write]] = wiping(100, 4096).steps
    assert (write.offset, write.end) == (100, 4196)
    assert wiping(100, 4096) != wiping(100, 4096)


@pytest.mark.parametrize(("key_size", "size"), [(16, 65536), (24, 98304), (32, 131072), (48, 192512), (64, 258048)])
def test_key_material_fills_its_area(key_size: int, size: int) -> None:
    """4000 stripes of the key, rounded up to 4096 bytes (cryptsetup's sizes), and random to the end."""
    assert material_size(key_size) == size
    with SecretBytes.copy_of(bytes(key_size)) as key, SecretBytes.copy_of(b"x") as secret:
        one, two = (seal(key, secret, new_slot()) for _ in range(2))
    assert len(one) == len(two) == size
    assert all(one[at : at + 16] != two[at : at + 16] for at in range(0, size, 16))


def test_a_header_that_somebody_has_changed_meanwhile_is_told() -> None:
    """The digest, and the keyslot that was opened with its material, are as they were; others may come and go."""
    area = after(empty(2), adding(b"one"), adding(b"two", salt=1))
    before = parse_header(area)
    for edit in (adding(b"three"), removing(1), changing(1, b"x", salt=5)):
        keyslots.check_unchanged(parse_header(after(area, edit)), before, 0, 0)
    assert before.keyslots[0].area.offset < before.keyslots[1].area.offset
    byte = before.keyslots[0].area.offset + AREA - 1
    flipped = area[:byte] + bytes([area[byte] ^ 1]) + area[byte + 1 :]
    salted = metadata(area)
    salted["digests"]["0"]["salt"] = "A" * 43 + "="
    for changed in (after(area, changing(0, b"x")), after(area, removing(0)), flipped, with_metadata(area, salted)):
        with pytest.raises(InUse):
            keyslots.check_unchanged(parse_header(changed), before, 0, 0)
    keyslots.check_unchanged(parse_header(after(area, changing(0, b"x"))), before, 0)
    with pytest.raises(InUse):
        keyslots.check_unchanged(parse_header(with_metadata(area, salted)), before, 0)
    with pytest.raises(InUse):
        keyslots.check_unchanged(dataclasses.replace(before, version=1), before, 0)
