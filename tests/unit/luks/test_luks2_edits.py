"""Changes of a LUKS2 header: its metadata in cryptsetup's words, its two copies, and the room between its areas."""

from __future__ import annotations

import base64
import copy
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.edited import AREA, KEY, UUID, adding, after, changing, empty, new_slot, opened, removing
from support.luks2_edit import Json, metadata, with_metadata

from lukshdrfs.errors import HeaderError, NoUsableKeyslot, UnsupportedFeature, UsageError
from lukshdrfs.luks import keyslots
from lukshdrfs.luks.edit import HeaderEdit
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.luks2.edit import add_keyslot, rewrite_damaged_copy, set_names
from lukshdrfs.luks.model import Kdf, Priority
from lukshdrfs.secret import SecretBytes

COPY = 16384
"""Bytes of one copy of the metadata."""
FIRST_AREA = 2 * COPY


def epochs(area: bytes) -> tuple[int, int]:
    """Return the epochs of both copies (LUKS2 specification, section 2.1, `seqid`)."""
    first, second = (int.from_bytes(area[at + 16 : at + 24], "big") for at in (0, COPY))
    return first, second


def with_slots(area: bytes, **changes: Any) -> bytes:
    """Return a header with other keyslot objects, in both copies."""
    changed = metadata(area)
    changed["keyslots"] |= changes
    return with_metadata(area, changed)


def areas(area: bytes) -> list[tuple[int, int]]:
    """Return where the keyslots' areas are, by the keyslots' numbers."""
    slots = sorted(metadata(area)["keyslots"].items(), key=lambda item: int(item[0]))
    return [(int(slot["area"]["offset"]), int(slot["area"]["size"])) for _, slot in slots]


def test_a_new_keyslot_is_in_cryptsetups_words() -> None:
    """Keyslot and digest say exactly what they should, in text where cryptsetup has text."""
    found = metadata(after(empty(2), adding(b"one", 5, salt=3)))
    expected: Json = {
        "type": "luks2",
        "key_size": 32,
        "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
        "area": {
            "type": "raw", "offset": str(FIRST_AREA), "size": str(AREA), "encryption": "aes-xts-plain64",
            "key_size": 32,
        },
        "kdf": {
            "type": "pbkdf2", "hash": "sha256", "iterations": 13,
            "salt": base64.b64encode(bytes([3]) * 32).decode(),
        },
    }  # fmt: skip
    assert found["keyslots"] == {"5": expected}
    assert found["digests"]["0"]["keyslots"] == ["5"]


def test_argon2_is_in_cryptsetups_words() -> None:
    """Argon2 has its passes, memory in KiB and lanes as numbers."""
    slot = dataclasses.replace(new_slot(), kdf=Kdf("argon2i", bytes(32), 4, memory_kib=64, lanes=2))
    header = parse_header(empty(2))
    with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(b"x") as secret:
        number, edit = keyslots.add_keyslot(header, key, secret, slot)
    area = edit.applied_to(header.area)
    assert metadata(area)["keyslots"][str(number)]["kdf"] == {
        "type": "argon2i", "time": 4, "memory": 64, "cpus": 2, "salt": base64.b64encode(bytes(32)).decode(),
    }  # fmt: skip
    assert opened(area, b"x") == number


@pytest.mark.parametrize("priority", [None, *Priority])
def test_a_priority_is_written_where_it_is_not_the_normal_one(priority: Priority | None) -> None:
    """A new keyslot is normal unless told otherwise; a changed one keeps its own, or takes the one that is told."""
    said = {} if priority in (None, Priority.NORMAL) else {"priority": priority}
    added = after(empty(2), adding(b"one", priority=priority))
    assert {name: n for name, n in metadata(added)["keyslots"]["0"].items() if name == "priority"} == said
    for before in Priority:
        area = keyslots.set_priority(parse_header(added), 0, before).applied_to(added)
        assert parse_header(area).keyslots[0].priority == before
        assert ("priority" in metadata(area)["keyslots"]["0"]) == (before != Priority.NORMAL)
        changed = after(area, changing(0, b"two", priority=priority))
        assert parse_header(changed).keyslots[0].priority == (before if priority is None else priority)
    with pytest.raises(NoUsableKeyslot, match="keyslot 3"):
        keyslots.set_priority(parse_header(added), 3, Priority.PREFER)
    with pytest.raises(UnsupportedFeature):
        keyslots.set_priority(parse_header(after(empty(1), adding(b"x"))), 0, Priority.PREFER)


def test_what_is_not_known_of_a_keyslot_stays() -> None:
    """A change keeps members that other programs have put there; a removal takes the number out of tokens, too."""
    area = after(empty(2), adding(b"one"), adding(b"two"))
    changed = metadata(area)
    changed["keyslots"]["0"]["later"] = {"much": [1]}
    changed["tokens"]["2"] = {"type": "x", "keyslots": ["1", "0"], "own": True}
    area = after(with_metadata(area, changed), changing(0, b"three"))
    assert metadata(area)["keyslots"]["0"]["later"] == {"much": [1]}
    assert metadata(area)["tokens"] == changed["tokens"]
    area = after(area, removing(0))
    assert list(metadata(area)["keyslots"]) == metadata(area)["digests"]["0"]["keyslots"] == ["1"]
    assert metadata(area)["tokens"] == {"2": {"type": "x", "keyslots": ["1"], "own": True}}


def test_a_digest_of_nothing_goes_with_its_last_keyslot() -> None:
    """The digest of an unbound key goes with its keyslot; the volume's own stays without any, for it has a segment."""
    area = after(empty(2), adding(b"one"))
    changed = metadata(area)
    changed["digests"]["1"] = changed["digests"]["0"] | {"keyslots": [], "segments": []}
    header = parse_header(with_metadata(area, changed | {"digests": changed["digests"]}))
    with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(b"unbound") as secret:
        number, edit = add_keyslot(header, key, secret, new_slot(), digest=1)
        with pytest.raises(NoUsableKeyslot):
            add_keyslot(header, key, secret, new_slot(), digest=2)
    area = edit.applied_to(header.area)
    assert number == 1
    assert {name: digest["keyslots"] for name, digest in metadata(area)["digests"].items()} == {"0": ["0"], "1": ["1"]}
    assert list(metadata(after(area, removing(1)))["digests"]) == ["0"]
    assert metadata(after(area, removing(0)))["digests"]["0"]["keyslots"] == []


# --- room ------------------------------------------------------------------------------------------------------------


def test_the_room_is_used_to_its_last_byte() -> None:
    """So many keyslots as fit are made, side by side from the first byte on; one more is refused."""
    area = after(empty(2, slots=3), *[adding(b"secret %d" % number) for number in range(3)])
    assert areas(area) == [(FIRST_AREA + number * AREA, AREA) for number in range(3)]
    assert len(area) == FIRST_AREA + 3 * AREA
    with pytest.raises(HeaderError, match="no room"):
        after(area, adding(b"x"))
    again = after(area, removing(1), adding(b"again", 9))
    assert areas(again) == [areas(area)[0], areas(area)[2], areas(area)[1]]


def test_a_change_moves_the_keyslot_into_free_room() -> None:
    """The new material lies elsewhere while the old one is there; where that is, is free the next time."""
    area = after(empty(2, slots=3), adding(b"one"), adding(b"two"))
    moved = after(area, changing(0, b"new"))
    assert areas(moved) == [(FIRST_AREA + 2 * AREA, AREA), areas(area)[1]]
    assert areas(after(moved, changing(1, b"newer")))[1] == areas(area)[0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 120), st.integers(1, 40)), max_size=6), st.integers(40, 160))
def test_a_new_area_is_in_the_first_gap_that_takes_it(wanted: list[tuple[int, int]], end: int) -> None:
    """Whatever areas there are, the new one is aligned and overlaps none, and no earlier place is free."""
    base = after(empty(2), adding(b"one"))
    template, taken = metadata(base), list[tuple[int, int]]()
    for start, size in wanted:  # in units of 4096 bytes
        if start + size <= end and all(start + size <= a or a + b <= start for a, b in taken):
            taken.append((start, size))
    slot = template["keyslots"].pop("0")
    for number, (start, size) in enumerate(taken):
        other = copy.deepcopy(slot)
        other["area"] |= {"offset": str(FIRST_AREA + start * 4096), "size": str(size * 4096 - (size > 1) * 512)}
        template["keyslots"][str(number)] = other
    template["config"]["keyslots_size"] = str(end * 4096)
    template["digests"]["0"]["keyslots"] = list(template["keyslots"])
    units = AREA // 4096
    free = [at for at in range(end - units + 1) if all(at + units <= a or a + b <= at for a, b in taken)]
    area = with_metadata(base[:FIRST_AREA] + bytes(end * 4096), template)
    header = dataclasses.replace(parse_header(base), keyslots=(), area=area)
    with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(b"x") as secret:
        if not free:
            with pytest.raises(HeaderError, match=f"{AREA} more bytes"):
                add_keyslot(header, key, secret, new_slot(), digest=0, number=31)
            return
        _, edit = add_keyslot(header, key, secret, new_slot(), digest=0, number=31)
    [material] = edit.steps[0]
    assert (material.offset, material.end) == (FIRST_AREA + free[0] * 4096, FIRST_AREA + free[0] * 4096 + AREA)


def test_a_full_header_is_changed_in_place_alone() -> None:
    """Without room a change is refused, unless it may be in place; then the first step has material and metadata."""
    area = after(empty(2, slots=2), adding(b"one"), adding(b"two"))
    with pytest.raises(HeaderError, match="keyslot 1; --in-place"):
        after(area, changing(1, b"new"))
    edit = changing(1, b"new", in_place=True)(parse_header(area))
    assert edit.in_place
    assert [[write.offset for write in step] for step in edit.steps] == [[FIRST_AREA + AREA, COPY], [0]]
    changed = edit.applied_to(area)
    assert [opened(changed, secret) for secret in (b"one", b"two", b"new")] == [0, None, 1]
    assert areas(changed) == areas(area)
    roomy = after(empty(2, slots=3), adding(b"one"), adding(b"two"))
    assert not changing(1, b"new", in_place=True)(parse_header(roomy)).in_place


def test_an_area_that_is_too_small_is_not_changed_in_place() -> None:
    """An area with less than the key's 4000 stripes takes no new material; one without the filling does."""
    area = after(empty(2, slots=1), adding(b"one"))
    slot = metadata(area)["keyslots"]["0"]
    small = copy.deepcopy(slot)
    small["area"]["size"] = str(32 * 4000)
    exact = changing(0, b"new", in_place=True)(parse_header(with_slots(area, **{"0": small})))
    assert len(exact.steps[0][0].data) == 32 * 4000
    small["key_size"], small["area"]["size"] = 16, str(32 * 4000 - 512)
    with pytest.raises(HeaderError, match="holds no key of this size"):
        changing(0, b"new", in_place=True)(parse_header(with_slots(area, **{"0": small})))


# --- the two copies --------------------------------------------------------------------------------------------------


def damaged(area: bytes, copy_at: int) -> bytes:
    """Return a header of which one copy's checksum is wrong."""
    return area[: copy_at + 450] + bytes([area[copy_at + 450] ^ 1]) + area[copy_at + 451 :]


@pytest.mark.parametrize(("broken", "order"), [(None, [COPY, 0]), (COPY, [COPY, 0]), (0, [0, COPY])])
def test_the_copy_that_counts_is_written_last(broken: int | None, order: list[int]) -> None:
    """New metadata go to the other copy first, each in a step of its own, with the next epoch in both."""
    area = after(empty(2), adding(b"one"))
    epoch = epochs(area)[0]
    header = parse_header(area if broken is None else damaged(area, broken))
    edit = set_names(header, label="new")
    assert [[write.offset for write in step] for step in edit.steps] == [[at] for at in order]
    later = edit.applied_to(header.area)
    assert epochs(later) == (epoch + 1, epoch + 1)
    assert (parse_header(later).label, parse_header(later).warnings) == ("new", ())
    for state in (HeaderEdit(edit.steps[:1]).applied_to(header.area), later):
        assert opened(state, b"one") == 0


@pytest.mark.parametrize("broken", [0, COPY])
def test_a_damaged_copy_is_made_anew_from_the_other(broken: int) -> None:
    """One write, in the place of the damaged one, and either copy alone opens again."""
    area = after(empty(2), adding(b"one"))
    edit = rewrite_damaged_copy(parse_header(damaged(area, broken)))
    [[write]] = edit.steps
    assert (write.offset, write.end) == (broken, broken + COPY)
    mended = edit.applied_to(damaged(area, broken))
    assert parse_header(mended).warnings == ()
    assert epochs(mended) == epochs(area)
    for lost in (0, COPY):
        assert opened(damaged(mended, lost), b"one") == 0


def test_two_damaged_copies_are_beyond_repair() -> None:
    """Where neither copy is valid, there is nothing to make one from."""
    area = empty(2)
    header = dataclasses.replace(parse_header(area), area=damaged(damaged(area, 0), COPY))
    with pytest.raises(HeaderError, match="neither"):
        rewrite_damaged_copy(header)


def test_names_are_changed_one_by_one() -> None:
    """Label, subsystem and UUID are what they are set to, an empty one included; what is not named stays."""
    area = empty(2)
    other = UUID.replace("4", "a")
    for names, expected in (
        ({"label": "l"}, ("l", "", UUID)),
        ({"subsystem": "s"}, ("l", "s", UUID)),
        ({"uuid": other}, ("l", "s", other)),
        ({"label": "", "subsystem": "t"}, ("", "t", other)),
    ):
        area = set_names(parse_header(area), **names).applied_to(area)
        header = parse_header(area)
        assert (header.label, header.subsystem, header.uuid) == expected
    for what in ("label", "subsystem"):
        with pytest.raises(UsageError, match=what):
            set_names(parse_header(area), **{what: "x" * 48})


def test_a_header_that_asks_for_more_is_not_changed() -> None:
    """A requirement that is not known here keeps every edit from it, and is named."""
    area = after(empty(2), adding(b"one"))
    header = dataclasses.replace(parse_header(area), requirements=("first-one", "second"))
    with pytest.raises(UnsupportedFeature, match="first-one, second"):
        set_names(header, label="x")
    for edit in (adding(b"x"), changing(0, b"x"), removing(0)):
        with pytest.raises(UnsupportedFeature, match="first-one, second"):
            edit(header)
