"""The JSON of a LUKS2 header: what is taken, what is refused, and that nothing takes long."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.luks2 import strict_json as sj

MIB = 1 << 20
PATIENCE_S = 10.0
"""Far above what any of the large documents takes, far below what a quadratic algorithm would."""

no_nul = st.characters(exclude_characters="\0")
names = st.text(no_nul, max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(no_nul),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(names, children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, json_values, max_size=6), st.integers(1, 100), st.sampled_from([None, 2]))
def test_an_object_comes_back_as_it_was_written(value: dict[str, Any], nuls: int, indent: int | None) -> None:
    """Any object, however it is laid out, followed by NULs alone, gives itself."""
    assert sj.load(json.dumps(value, indent=indent).encode() + bytes(nuls)) == value


@pytest.mark.parametrize(("text", "value"), [('{"a\\u0000b":1}', {"a": 1}), ('{"x":["0\\u00001"]}', {"x": ["0"]})])
def test_strings_end_at_their_first_nul(text: str, value: dict[str, Any]) -> None:
    """A NUL ends a string, as it does for cryptsetup, which is a program in C."""
    assert sj.load(text.encode() + b"\0") == value


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda data: b"{" + data + b"\0\0"))
def test_random_bytes_are_an_object_or_a_header_error(data: bytes) -> None:
    """Whatever is in the area, nothing but an object or HeaderError comes out."""
    try:
        found = sj.load(data)
    except HeaderError:
        return
    assert isinstance(found, dict)


@given(st.data())
def test_a_damaged_document_is_an_object_or_a_header_error(data: st.DataObject) -> None:
    """A document with a few bytes changed is still an object, or HeaderError."""
    area = bytearray(b'{"segments":{"0":{"type":"crypt","offset":"0","size":"dynamic","flags":[1,2.5,null]}}}\0\0\0')
    for _ in range(data.draw(st.integers(1, 4))):
        area[data.draw(st.integers(0, len(area) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(HeaderError):
        assert isinstance(sj.load(bytes(area)), dict)


@pytest.mark.parametrize(
    ("area", "why"),
    [
        (b"", "no NUL"),
        (b"{}", "no NUL"),
        (bytes(100), "'{'"),
        (b" {}\0", "'{'"),
        (b"\xef\xbb\xbf{}\0", "'{'"),
        (b"[]\0", "'{'"),
        (b'"text"\0', "'{'"),
        (b"{\0}", "after the text"),
        (b"{}\0{}\0", "after the text"),
        (b"{}" + bytes(500) + b"\x01" + bytes(9), "after the text"),
        (b"{}x\0", "after the object"),
        (b"{}{}\0", "after the object"),
        (b"{\0", "parsed"),
        (b'{"a"}\0', "parsed"),
        (b'{"a":1,}\0', "parsed"),
        (b"{'a':1}\0", "parsed"),
        (b'{"a":01}\0', "parsed"),
        (b'{"a":"\\u12"}\0', "parsed"),
        (bytes([0xFF]) * 100 + b"\0", "'{'"),
    ],
)
def test_what_is_no_object_and_nuls_is_refused(area: bytes, why: str) -> None:
    """The area is an object from its first byte on, then nothing but NULs, and at least one; the message says which."""
    with pytest.raises(HeaderError, match=why):
        sj.load(area)


def nested(levels: int) -> bytes:
    """Return an object whose values are `levels` deep, the object counted."""
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}\0"


def test_nesting_has_a_limit() -> None:
    """Values may be 32 deep, as in json-c, and not deeper; a million levels are refused the same way."""
    sj.load(nested(32))
    for levels in (33, 100, 1000, 100_000, 2 * MIB):
        with pytest.raises(HeaderError):
            sj.load(nested(levels))


def large_documents() -> dict[str, bytes]:
    """Return documents that fill the largest JSON area there is, each made to take long in its own way."""
    fill = 4 * MIB - 4096 - 100
    return {
        "one number": b'{"a":' + b"9" * fill + b"}\0",
        "one negative number": b'{"a":-' + b"9" * fill + b"}\0",
        "one float": b'{"a":0.' + b"9" * fill + b"}\0",
        "one exponent": b'{"a":1e' + b"9" * fill + b"}\0",
        "one string": b'{"a":"' + b"x" * fill + b'"}\0',
        "escapes": b'{"a":"' + b"\\u0041" * (fill // 6) + b'"}\0',
        "many members": b"{" + b",".join(b'"%d":0' % n for n in range(fill // 12)) + b"}\0",
        "the same member": b"{" + b",".join([b'"a":0'] * (fill // 6)) + b"}\0",
        "one array": b'{"a":[' + b",".join([b"0"] * (fill // 2)) + b"]}\0",
        "empty objects": b'{"a":[' + b",".join([b"{}"] * (fill // 3)) + b"]}\0",
        "spaces": b'{"a":' + b" " * fill + b"1}\0",
        "open braces": b'{"a":' * (fill // 5) + b"\0",
        "nothing": b"{}" + bytes(fill),
    }


@pytest.mark.parametrize(("name", "area"), large_documents().items(), ids=large_documents())
def test_the_largest_area_is_done_in_bounded_time(name: str, area: bytes) -> None:
    """4 MiB of JSON take seconds at the most, however they are made."""
    start = time.process_time()
    with contextlib.suppress(HeaderError):
        sj.load(area)
    assert time.process_time() - start < PATIENCE_S


def test_integers_far_out_of_range_stay_out_of_range() -> None:
    """An integer of thousands of digits is not read in full, and is no legal value of any field."""
    document = sj.load(b'{"a":' + b"1" * 5000 + b',"b":-' + b"1" * 5000 + b',"c":4294967295}\0')

    assert sj.get_uint32(document, "c", "here") == 4294967295
    for key in ("a", "b"):
        with pytest.raises(HeaderError):
            sj.get_uint32(document, key, "here")


def test_the_last_of_two_members_counts() -> None:
    """Of members with one name the last one counts, as in json-c: both programs see the same header."""
    assert sj.load(b'{"a":1,"a":2}\0') == {"a": 2}


getters = st.sampled_from([sj.get_text, sj.get_uint32, sj.get_uint64, sj.get_strtoull, sj.get_strings])


@given(getters, json_values)
def test_a_field_is_of_its_type_or_a_header_error(getter: Callable[[Any, str, str], Any], value: object) -> None:
    """Any value in any field, and any parent, gives a value of the field's type or HeaderError naming both."""
    for parent in ({"field": value}, {}, value):
        try:
            found = getter(parent, "field", "segment 5")
        except HeaderError as error:
            message = str(error)
        else:
            assert isinstance(found, (str, int, tuple))
            assert not isinstance(found, bool)
            continue
        assert "segment 5" in message
        assert "'field'" in message


@pytest.mark.parametrize("value", [True, False, None, 1.0, "1", [1], {"1": 1}, -1, 1 << 32, 1 << 64, float("nan")])
def test_no_uint32(value: object) -> None:
    """Booleans, floats, text, and numbers below 0 or above 2^32-1 are not 32-bit numbers."""
    with pytest.raises(HeaderError, match="'n'"):
        sj.get_uint32({"n": value}, "n", "here")


@pytest.mark.parametrize("value", [0, 1, (1 << 32) - 1])
def test_uint32(value: int) -> None:
    """Everything from 0 to 2^32-1 is a 32-bit number."""
    assert sj.get_uint32({"n": value}, "n", "here") == value


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "+1", "-1", "0x10", "1.0", "1e3", "one", "\u0661", "18446744073709551616", "9" * 5000, "\0001"],
)
def test_no_uint64(text: str) -> None:
    """A 64-bit number is digits below 2^64 in a string; signs, spaces, other digits and other bases are refused."""
    for value in (text, 5, True, None):
        with pytest.raises(HeaderError, match="'n'"):
            sj.get_uint64({"n": value}, "n", "here")


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 5))
def test_uint64(value: int, zeros: int) -> None:
    """Every number below 2^64 is read from its digits, leading zeros allowed."""
    assert sj.get_uint64({"n": "0" * zeros + str(value)}, "n", "here") == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12),
        (" 12", 12),
        ("\t\n+12", 12),
        ("-1", (1 << 64) - 1),
        ("-0", 0),
        ("18446744073709551615", (1 << 64) - 1),
    ],
)
def test_strtoull(text: str, expected: int) -> None:
    """Where cryptsetup uses strtoull(3), space and sign are taken, and a negative number wraps."""
    assert sj.get_strtoull({"n": text}, "n", "here") == expected


@pytest.mark.parametrize("text", ["", "12 ", "--1", "0x1", "18446744073709551616", "x", "9" * 5000, "- 1", "\u0661"])
def test_no_strtoull(text: str) -> None:
    """What strtoull(3) would not read to its end, or not without overflow, is refused."""
    with pytest.raises(HeaderError, match="'n'"):
        sj.get_strtoull({"n": text}, "n", "here")


def test_strings_are_an_array_of_nothing_else() -> None:
    """An array of strings is one; one with anything else in it is refused, and so is none, unless it is optional."""
    assert sj.get_strings({"a": ["x", ""]}, "a", "here") == ("x", "")
    assert sj.get_strings({}, "a", "here", optional=True) == ()
    parents: list[dict[str, object]] = [{"a": ["x", 1]}, {"a": "x"}, {"a": None}, {"a": {}}]
    for parent in parents:
        with pytest.raises(HeaderError):
            sj.get_strings(parent, "a", "here", optional=True)
    with pytest.raises(HeaderError):
        sj.get_strings({}, "a", "here")


@pytest.mark.parametrize("name", ["x", "-1", " 1", "1a", "\u0663", "0x1", "1.0", "é"])
def test_object_names_are_numbers(name: str) -> None:
    """A keyslot, segment or digest that is not named by a number is refused by that name."""
    assert list(sj.objects({"keyslots": {"3": 1, "10": 2}}, "keyslots")) == [("3", 1), ("10", 2)]
    with pytest.raises(HeaderError, match="not a number"):
        list(sj.objects({"keyslots": {name: {}}}, "keyslots"))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1.50,"b":1e3,"c":-0.0,"d":1E-400,"e":0.1234567890123456789012}',
        '{"a":[],"b":{},"c":[[1],{"d":null}],"e":true,"f":false,"g":12345678901234567}',
        '{"a":"\\"\\\\ \\u0001\\t é","é":"\\u007f"}'.replace("\\u007f", "\x7f"),
    ],
)
def test_dumps_what_it_loaded(text: str) -> None:
    """Members of other programs are written as they were read, numbers digit by digit."""
    assert sj.dump(sj.load(text.encode() + b"\0")) == text.encode()


def test_dumps_what_is_no_text() -> None:
    """Bytes that are no UTF-8 stay; half a surrogate pair is U+FFFD, for which json-c takes it."""
    assert sj.dump(sj.load(b'{"a":"\xff\x80"}\0')) == b'{"a":"\xff\x80"}'
    assert sj.dump(sj.load(rb'{"a":"x\ud800y"}' + b"\0")) == '{"a":"x\ufffdy"}'.encode()
    assert sj.dump(sj.load(rb'{"a":"\ud83d\ude00"}' + b"\0")) == '{"a":"\U0001f600"}'.encode()
