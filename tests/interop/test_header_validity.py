"""
What cryptsetup accepts is accepted, what it rejects is rejected: the same altered headers shown to both.

Only what is of a type or hash that neither knows, cryptsetup rejects as a whole, and we show it.

The checksums of the altered headers are right, so that it is the checks of the metadata that decide.
"""

from __future__ import annotations

import copy
import json
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.golden import unpacked
from support.luks2_edit import metadata, with_json_area, with_metadata
from support.tools import program

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.header import parse_header

pytestmark = pytest.mark.needs("cryptsetup")

BASES = (
    "luks2-aes-xts-256-s512",
    "luks2-aes-xts-256-s4096",
    "luks2-pbkdf2-5000",
    "luks2-tokens",
    "luks2-unbound-keyslot",
    "luks2-detached-offset",
    "luks2-label-flags",
    "luks2-reencrypt-half",
    "luks2-decrypt-half",
    "luks2-metadata-64k",
)
HEADERS = {name: unpacked(f"{name}.header.img.gz") for name in BASES}
LUKS1 = unpacked("luks1-aes-cbc-essiv-128.header.img.gz")

Path_ = tuple[str | int, ...]

EDGES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 511, 512, 513, 4096, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**30, 1.0, 0.5,
    "", "0", "1", "2", "7", "-1", "+1", " 1", "1 ", "00", "01", "0x10", "512", "513", "4096", "32768", "16384", "12288",
    "18446744073709551615", "18446744073709551616", "18446744073709551104", "99999999999999999999999", "dynamic",
    "crypt", "linear", "luks2", "reencrypt", "pbkdf2", "argon2i", "argon2id", "raw", "none", "datashift", "checksum",
    "luks1", "online-reencrypt", "online-reencrypt-v2", "online-reencrypt-v9", "online-reencrypt-vx",
    "offline-reencrypt", "backup-final", "backup-previous", "in-reencryption", "backup-", "something", "é", "a\tb",
    [], ["0"], ["0", "0"], ["1"], ["9"], [0], [None], ["backup-final"], ["allow-discards"],
    {}, {"mandatory": []}, {"mandatory": ["online-reencrypt-v2"]}, {"mandatory": ["x"]}, {"mandatory": "x"},
    {"type": "luks2-keyring", "keyslots": []}, {"type": "x", "keyslots": ["0"]},
    {"type": "linear", "offset": "0", "size": "512"}, {"type": "x", "offset": "1048576", "size": "dynamic"},
    {"type": "raw", "offset": "32768", "size": "4096"},
)  # fmt: skip
KEYS = ("0", "1", "2", "9", "31", "32", "x", "", "-1", "type", "flags", "requirements", "integrity", "priority", "hash")


def paths(value: Any, here: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every value in a JSON document."""
    yield here
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*here, key))


@st.composite
def altered_metadata(draw: st.DrawFn) -> bytes:
    """Return a header in which one to three things are gone, replaced, added or copied."""
    base = HEADERS[draw(st.sampled_from(BASES))]
    document = copy.deepcopy(metadata(base))
    for _ in range(draw(st.integers(1, 3))):
        candidates = [path for path in paths(document) if path]
        path = draw(st.sampled_from(candidates))
        parent: Any = document
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(("delete", "replace", "add", "copy", "rename")))
        value = parent[path[-1]]
        if action == "delete":
            del parent[path[-1]]
        elif action == "replace":
            parent[path[-1]] = copy.deepcopy(draw(st.sampled_from(EDGES)))
        elif isinstance(parent, dict):
            if action == "add":
                parent[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(EDGES)))
            elif action == "copy":
                parent[draw(st.sampled_from(KEYS))] = copy.deepcopy(value)
            else:
                parent[draw(st.sampled_from(KEYS))] = parent.pop(path[-1])
        if not document:
            break
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(text) >= int.from_bytes(base[8:16], "big") - 4096:
        return base
    return with_metadata(base, document)


def cryptsetup_accepts(header: bytes, folder: Path) -> bool:
    """Show a header to cryptsetup; it may repair its own copy."""
    file = folder / "header.img"
    file.write_bytes(header)
    shown = subprocess.run([program("cryptsetup"), "luksDump", file], capture_output=True, check=False)
    assert shown.returncode in (0, 1), shown.stderr
    return shown.returncode == 0


def we_accept(header: bytes) -> tuple[bool, str]:
    """Show a header to ourselves; nothing but our own error may come out."""
    try:
        parse_header(header)
    except HeaderError as error:
        return False, str(error)
    return True, ""


def names_something_new(header: bytes) -> bool:
    """Whether a keyslot of the header has a type of AF splitter or area that cryptsetup does not know."""
    slots = metadata(header).get("keyslots")
    parts = [
        (slot.get(part), known)
        for slot in (slots.values() if isinstance(slots, dict) else ())
        if isinstance(slot, dict) and slot.get("type") == "luks2"
        for part, known in (("af", "luks1"), ("area", "raw"))
    ]
    return any(
        isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != known for part, known in parts
    )


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(header=altered_metadata())
def test_altered_metadata_are_judged_as_cryptsetup_judges_them(header: bytes, tmp_path: Path) -> None:
    """Any combination of missing, wrong and superfluous members is accepted by both programs or by neither."""
    ours, reason = we_accept(header)
    assert ours == cryptsetup_accepts(header, tmp_path) or names_something_new(header), reason


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "space after": lambda text: text + b" \n\t",
    "other byte after": lambda text: text + b"x",
    "second object": lambda text: text + b"{}",
    "NUL and byte after": lambda text: text + b"\0x",
    "space before": lambda text: b" " + text,
    "array": lambda text: b"[" + text + b"]",
    "empty": lambda _: b"",
    "empty object": lambda _: b"{}",
    "cut off": lambda text: text[:-1],
    "duplicate member, last valid": lambda text: b'{"tokens":1,' + text[1:],
    "duplicate member, last wrong": lambda text: text[:-1] + b',"tokens":1}',
    "invalid UTF-8": lambda text: text[:-1] + b',"x":"\xff\xfe"}',
    "lone surrogate": lambda text: text[:-1] + b',"x":"\\ud800"}',
    "control character": lambda text: text[:-1] + b',"x":"\x01"}',
    "NUL in a string": lambda text: text[:-1] + b',"x":"a\\u0000b"}',
    "NUL in a name": lambda text: text.replace(b'"tokens":', b'"tokens\\u0000x":'),
    "NUL in a reference": lambda text: text.replace(b'"keyslots":["0"]', b'"keyslots":["0","0\\u00002"]'),
    "form feed after": lambda text: text + b"\f",
    "float": lambda text: text[:-1] + b',"x":1e400}',
    "huge integer": lambda text: text[:-1] + b',"x":' + b"9" * 5000 + b"}",
    "deepest": lambda text: text[:-1] + b',"x":' + b"[" * 30 + b"]" * 30 + b"}",
    "too deep": lambda text: text[:-1] + b',"x":' + b"[" * 31 + b"]" * 31 + b"}",
    "far too deep": lambda text: text[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_odd_json_is_judged_as_cryptsetup_judges_it(name: str, tmp_path: Path) -> None:
    """The text around and inside of the JSON object is as free, and as bound, as json-c has it."""
    base = HEADERS["luks2-metadata-64k"]
    text = json.dumps(metadata(base), separators=(",", ":")).encode()
    header = with_json_area(base, TEXTS[name](text))
    ours, reason = we_accept(header)
    assert ours == cryptsetup_accepts(header, tmp_path), reason


BINARY_FIELDS = {"magic": 0, "version": 6, "hdr_size": 8, "seqid": 16, "csum_alg": 72, "hdr_offset": 256, "csum": 448}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.lists(
        st.tuples(
            st.sampled_from(sorted(BINARY_FIELDS)),
            st.booleans(),
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=3,
    ),
    base=st.sampled_from(("luks2-metadata-64k", "luks2-tokens")),
)
def test_damaged_binary_headers_are_judged_as_cryptsetup_judges_them(
    fields: list[tuple[str, bool, bytes]], base: str, tmp_path: Path
) -> None:
    """Damage to either copy's binary header leaves a header to both programs or to neither."""
    header = bytearray(HEADERS[base])
    size = int.from_bytes(header[8:16], "big")
    for name, secondary, data in fields:
        at = BINARY_FIELDS[name] + (size if secondary else 0)
        header[at : at + len(data)] = data
    ours, reason = we_accept(bytes(header))
    assert ours == cryptsetup_accepts(bytes(header), tmp_path), reason


U32 = st.sampled_from((0, 1, 7, 8, 9, 128, 256, 1000, 4000, 4040, 2**31, 2**32 - 1)) | st.integers(0, 2**32 - 1)
LUKS1_FIELDS = {
    "version": (6, ">H", st.integers(0, 3)),
    "payload offset": (104, ">I", U32),
    "key bytes": (108, ">I", U32),
    "hash": (72, ">8s", st.sampled_from((b"sha256", b"SHA256", b"md5", b"nohash", b"", b"sha3-256", b"ripemd16"))),
    "cipher": (8, ">8s", st.sampled_from((b"aes", b"", b"nosuch"))),
    **{f"slot {n} state": (208 + 48 * n, ">I", U32) for n in (0, 7)},
    **{f"slot {n} offset": (208 + 48 * n + 40, ">I", U32) for n in (0, 1, 7)},
    **{f"slot {n} stripes": (208 + 48 * n + 44, ">I", U32) for n in (0, 7)},
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_luks1_headers_are_judged_as_cryptsetup_judges_them(data: st.DataObject, tmp_path: Path) -> None:
    """Any value of any field of a LUKS1 header is accepted by both programs or by neither."""
    header = bytearray(LUKS1)
    for name in data.draw(st.lists(st.sampled_from(sorted(LUKS1_FIELDS)), min_size=1, max_size=3)):
        at, form, values = LUKS1_FIELDS[name]
        struct.pack_into(form, header, at, data.draw(values, label=name))
    ours, reason = we_accept(bytes(header))
    if ours and parse_header(bytes(header)).digests[0].unsupported:
        return
    assert ours == cryptsetup_accepts(bytes(header), tmp_path), reason
