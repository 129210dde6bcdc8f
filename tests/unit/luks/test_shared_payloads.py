"""One header for several payloads: which there are, what each of them is alone, and how another one is added."""

from __future__ import annotations

import dataclasses
import random
import re
from typing import Any

import pytest
from support.edited import AREA, KEY, UUID, adding, after, empty, kdf, new_slot, opened, removing
from support.luks2_edit import Json, metadata, with_metadata

from lukshdrfs.errors import HeaderError, UsageError
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.luks2.shared import (
    SharedPayload,
    add_payload,
    choose_payload,
    exported,
    group_keyslots,
    header_for,
    same_passphrase,
    shared_payloads,
)
from lukshdrfs.luks.model import Header
from lukshdrfs.secret import SecretBytes

SEGMENT: Json = {
    "type": "crypt", "offset": "0", "size": "1048576", "iv_tweak": "0", "encryption": "aes-xts-plain64",
    "sector_size": 4096,
}  # fmt: skip
OTHER_KEYS = [random.Random(number).randbytes(32) for number in (7, 8)]


def with_payload(area: bytes, name: str, key: bytes, **options: Any) -> bytes:
    """Return a header that is for another payload, too."""
    chosen: dict[str, Any] = {"segment": SEGMENT, "first_name": "first", "opened_by": 0} | options
    header = parse_header(area)
    with SecretBytes.copy_of(key) as volume_key, SecretBytes.copy_of(b"all") as secret:
        return add_payload(header, volume_key, secret, new_slot(), name=name, **chosen).applied_to(area)


@pytest.fixture(scope="module")
def one() -> bytes:
    """Return a header for one payload, with a keyslot more than it needs."""
    return after(empty(2, slots=6), adding(b"all"), adding(b"alone", 4))


@pytest.fixture(scope="module")
def three(one: bytes) -> bytes:
    """Return a header for three payloads, all opened by one passphrase."""
    return with_payload(with_payload(one, "second", OTHER_KEYS[0]), "third", OTHER_KEYS[1])


def key_of(header: Header, keyslot: int | None = None) -> bytes:
    """Return the volume key that the passphrase opens."""
    with SecretBytes.copy_of(b"all") as secret:
        found = unlock(header, header.digests[0], secret, keyslot)
    with found.volume_key as key:
        return bytes(key.view)


def test_a_header_of_one_payload_is_not_shared(one: bytes) -> None:
    """It has no payloads of its own kind; who names one is told so."""
    header = parse_header(one)
    assert shared_payloads(header) == ()
    assert choose_payload(header, None, "/a/b.img") is None
    with pytest.raises(UsageError, match="--payload-name x: the header is one payload's alone"):
        choose_payload(header, "x", "/a/b.img")


def test_each_payload_has_its_own_key_and_segment(three: bytes) -> None:
    """The first one keeps all it had, the others have what they were made with, and their UUIDs differ."""
    header = parse_header(three)
    found = shared_payloads(header)
    assert [(p.name, p.digest, p.is_first, p.segment_object) for p in found] == [
        ("first", 0, True, {}), ("second", 1, False, SEGMENT), ("third", 2, False, SEGMENT),
    ]  # fmt: skip
    assert found[0].uuid == UUID
    assert len({p.uuid for p in found}) == 3
    assert all(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", p.uuid) for p in found)
    assert found[0].segment == header.segments[0]
    assert (found[1].segment.size, found[1].segment.sector_size, found[1].segment.offset) == (1 << 20, 4096, 0)
    for payload, key, slots in zip(found, [KEY, *OTHER_KEYS], [(0, 4), (1,), (2,)], strict=True):
        alone = header_for(header, payload)
        assert (alone.uuid, alone.label, alone.tokens) == (payload.uuid, payload.name, ())
        assert tuple(slot.id for slot in alone.keyslots) == slots
        assert [segment.id for segment in alone.segments] == [0]
        assert [digest.segments for digest in alone.digests] == [{0}]
        assert key_of(alone) == key


def test_the_metadata_of_a_shared_header(three: bytes) -> None:
    """Tokens and digests are as they are documented: further digests have no segment, the passphrase's token all."""
    found = metadata(three)
    tokens = found["tokens"]
    uuids = [tokens[n]["uuid"] for n in ("0", "1", "3")]
    assert tokens == {
        "0": {"type": "lukshdrfs-payload", "keyslots": [], "name": "first", "uuid": UUID, "digest": "0"},
        "1": {
            "type": "lukshdrfs-payload", "keyslots": [], "name": "second", "uuid": uuids[1], "digest": "1",
            "segment": SEGMENT,
        },
        "2": {"type": "lukshdrfs-passphrase", "keyslots": ["0", "1", "2"]},
        "3": {
            "type": "lukshdrfs-payload", "keyslots": [], "name": "third", "uuid": uuids[2], "digest": "2",
            "segment": SEGMENT,
        },
    }  # fmt: skip
    assert [(found["digests"][n]["keyslots"], found["digests"][n]["segments"]) for n in "012"] == [
        (["0", "4"], ["0"]), (["1"], []), (["2"], []),
    ]  # fmt: skip
    assert found["digests"]["1"]["hash"] == "sha256"
    assert list(found["segments"]) == ["0"]
    assert [found["keyslots"][n]["kdf"]["iterations"] for n in ("1", "2")] == [kdf().iterations] * 2


def test_one_passphrase_opens_its_keyslots_of_all_payloads(three: bytes) -> None:
    """What is noted of a passphrase counts both ways; a keyslot of which nothing is noted stands alone."""
    header = parse_header(three)
    assert [same_passphrase(header, number) for number in range(5)] == [(0, 1, 2), (1, 0, 2), (2, 0, 1), (3,), (4,)]


def test_keyslots_of_one_passphrase_are_noted(one: bytes) -> None:
    """What is told of a header's keyslots is in it afterwards, as numbers in text, and nothing else is changed."""
    area = group_keyslots(parse_header(one), [4, 0]).applied_to(one)
    assert [same_passphrase(parse_header(area), number) for number in (0, 4)] == [(0, 4), (4, 0)]
    assert metadata(area)["tokens"] == {"0": {"type": "lukshdrfs-passphrase", "keyslots": ["4", "0"]}}
    assert metadata(area) | {"tokens": {}} == metadata(one)


def test_a_further_payload_joins_the_passphrase_that_opened_it(one: bytes) -> None:
    """Each passphrase has a group of its own, that of the keyslot by which it is known to be right."""
    area = with_payload(with_payload(one, "a", OTHER_KEYS[0]), "b", OTHER_KEYS[1], opened_by=4)
    groups = [t["keyslots"] for t in metadata(area)["tokens"].values() if t["type"] == "lukshdrfs-passphrase"]
    assert groups == [["0", "1"], ["4", "2"]]


@pytest.mark.parametrize(
    ("name", "path", "chosen"),
    [
        ("second", "/x/first.img", "second"), (None, "/x/first.img", "first"), (None, "third", "third"),
        (None, "/second/third.a", "third"), (None, "/x/second", "second"), (None, "/x/fourth.img", None),
        (None, "/x/second.img.gz", None), ("fourth", "/x/first", None), (None, "/first/", None),
    ],
)  # fmt: skip
def test_a_payload_is_chosen_by_its_name_or_its_file(
    three: bytes, name: str | None, path: str, chosen: str | None
) -> None:
    """The name that is given counts alone; without one, that of the file does, with or without its ending."""
    header = parse_header(three)
    if chosen is None:
        with pytest.raises(UsageError, match=r"\(first, second, third\).*--payload-name") as caught:
            choose_payload(header, name, path)
        assert ("fourth is none of them" in str(caught.value)) == (name is not None)
    else:
        found = choose_payload(header, name, path)
        assert found is not None
        assert found.name == chosen


def test_two_payloads_whose_names_fit_are_not_guessed(one: bytes) -> None:
    """Where a file's name with and without its ending are two payloads', it is asked which."""
    area = with_payload(one, "second.img", OTHER_KEYS[0], first_name="second")
    with pytest.raises(UsageError, match="say which"):
        choose_payload(parse_header(area), None, "second.img")


@pytest.mark.parametrize("name", ["", "first", "x" * 48, "a\0"])
def test_a_payloads_name_is_its_own_and_fits(one: bytes, three: bytes, name: str) -> None:
    """No name twice, none that is empty or too long; where there is but one payload, the name it gets counts, too."""
    for area in (one, three):
        with pytest.raises(UsageError):
            with_payload(area, name, OTHER_KEYS[0])
    with pytest.raises(UsageError):
        with_payload(three, "third", OTHER_KEYS[0])
    with pytest.raises(UsageError):
        with_payload(one, "fine", OTHER_KEYS[0], first_name="x" * 48)
    assert shared_payloads(parse_header(with_payload(one, "x" * 47, OTHER_KEYS[0])))[1].name == "x" * 47
    # of a header that is shared already, the first payload has its name, whatever is said now
    assert [p.name for p in shared_payloads(parse_header(with_payload(three, "n", OTHER_KEYS[0], first_name="n")))] == [
        "first", "second", "third", "n",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["first", "second"])
def test_an_exported_header_is_one_payloads_alone(three: bytes, name: str) -> None:
    """It opens with the same passphrase, has the keyslots' bytes where they were, and nothing of the others."""
    header = parse_header(three)
    payload = choose_payload(header, name, "")
    assert payload is not None
    area = exported(header, payload)
    alone = parse_header(area)
    assert len(area) == len(three)
    assert (alone.uuid, alone.label, alone.seqid, alone.warnings) == (payload.uuid, name, 1, ())
    assert key_of(alone) == {"first": KEY, "second": OTHER_KEYS[0]}[name]
    assert alone.digests[0].keyslots == {slot.id for slot in alone.keyslots}
    assert metadata(area)["tokens"] == {}
    assert metadata(area)["config"] == metadata(three)["config"]
    slots = {slot.id: slot.area for slot in header.keyslots}
    kept = {"first": {0, 4}, "second": {1}}[name]
    for number, place in slots.items():
        same = area[place.offset : place.offset + AREA] == three[place.offset : place.offset + AREA]
        assert same == (number in kept)
    assert metadata(area)["segments"]["0"] == (SEGMENT if name == "second" else metadata(three)["segments"]["0"])


def test_a_payload_whose_keyslots_are_gone_is_gone(three: bytes) -> None:
    """Its token stays, for nobody may change what it does not know; its digest went with its last keyslot."""
    area = after(three, removing(1))
    assert [p.name for p in shared_payloads(parse_header(area))] == ["first", "third"]
    assert opened(area, b"alone") == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": 7}, "name"), ({"name": ""}, "name"), ({"name": "x" * 48}, "name"), ({"name": "é" * 24}, "name"),
        ({"name": None}, "name"), ({"uuid": 7}, "uuid"), ({"digest": 1}, "digest"), ({"digest": "x"}, "digest"),
        ({"digest": "-1"}, "digest"), ({"digest": "²"}, "digest"), ({"digest": "\u0661"}, "digest"),
        ({"digest": ""}, "digest"),
        ({"segment": {**SEGMENT, "sector_size": 513}}, "token 1"), ({"segment": {**SEGMENT, "size": "x"}}, "token 1"),
        ({"segment": {}}, "token 1"), ({"segment": []}, "token 1"), ({"name": "first"}, "same name"),
    ],
)  # fmt: skip
def test_a_damaged_token_of_a_payload_is_told(three: bytes, change: Json, reason: str) -> None:
    """What cannot be a payload is not guessed at: the token is named."""
    changed = metadata(three)
    changed["tokens"]["1"] |= change
    with pytest.raises(HeaderError, match=reason):
        shared_payloads(parse_header(with_metadata(three, changed)))


def test_names_and_numbers_at_their_borders(three: bytes) -> None:
    """47 bytes are a name, and a digest's number may have zeros before it or be one that there is not."""
    changed = metadata(three)
    changed["tokens"]["1"] |= {"name": "é" * 23 + "x", "digest": "01"}
    changed["tokens"]["3"] |= {"digest": "9" * 30}
    found: tuple[SharedPayload, ...] = shared_payloads(parse_header(with_metadata(three, changed)))
    assert [(p.name, p.digest) for p in found] == [("first", 0), ("é" * 23 + "x", 1)]
    assert dataclasses.replace(found[0], name="x") != found[0]
