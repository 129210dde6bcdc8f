"""Damaged headers by the hundred: only our own errors come out, and the files stay as they are."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import luks2_edit
from support.golden import golden_volumes, unpacked

import lukshdrfs

LUKS1 = "luks1-aes-cbc-essiv-128"
LUKS2 = "luks2-aes-cbc-essiv-128-s512"
BINARY_AND_JSON = 32 << 10

in_folder = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.cache
def header_of(name: str) -> bytes:
    """Return the header of a golden volume."""
    file = golden_volumes()[name].header_file
    assert file is not None
    return unpacked(file)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "payload.img"
    path.write_bytes(bytes(1 << 18))
    return path


def open_with(header: bytes, payload: Path) -> None:
    """Open a volume that may be damaged in any way: that succeeds, or it fails with an error of ours."""
    path = payload.with_name("header.img")
    path.write_bytes(header)
    with (
        contextlib.suppress(lukshdrfs.LukshdrfsError),
        lukshdrfs.open_volume(payload, header=path, passphrase=b"wrong or not", read_only=True) as volume,
    ):
        assert volume.size <= 1 << 18
    assert path.read_bytes() == header


@pytest.mark.parametrize("name", [LUKS1, LUKS2])
@given(data=st.data())
@in_folder
def test_flipped_bytes(name: str, data: st.DataObject, payload: Path) -> None:
    """Bytes changed anywhere in the metadata."""
    header = bytearray(header_of(name))
    end = 592 if name == LUKS1 else BINARY_AND_JSON
    # PBKDF2's iterations of LUKS1 have no checksum: a large number is refused or takes its time, which is no damage
    spared = {*range(164, 168), *(48 * slot + 208 + 4 + byte for slot in range(8) for byte in range(4))}
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, end - 1).filter(lambda at: name == LUKS2 or at not in spared))
        header[position] = data.draw(st.integers(0, 255))
    open_with(bytes(header), payload)


@pytest.mark.parametrize("name", [LUKS1, LUKS2])
@given(size=st.integers(0, 200_000))
@in_folder
def test_cut_off(name: str, size: int, payload: Path) -> None:
    """Headers that end anywhere."""
    open_with(header_of(name)[:size], payload)


@given(tail=st.binary(max_size=20_000), version=st.sampled_from([b"\0\1", b"\0\2", b"\0\0", b"\xff\xff"]))
@in_folder
def test_random_behind_magic(tail: bytes, version: bytes, payload: Path) -> None:
    """Random bytes that begin as a header does."""
    open_with(b"LUKS\xba\xbe" + version + tail, payload)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Return where every value inside is."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


METADATA = luks2_edit.metadata(header_of(LUKS2))
COSTS = {"iterations", "time", "memory", "cpus"}
VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 1 << 31, 1 << 63, 1 << 64, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["0", "-1", "+1", " 1", "01", "1e3", "18446744073709551615", "18446744073709551616"])
    | st.sampled_from([[], {}, [[]], {"0": {}}, ["0", "0"], ["7"]])
)


@given(
    place=st.sampled_from([place for place in places(METADATA) if place[-1] not in COSTS]),
    value=VALUES,
    how=st.sampled_from(["replace", "remove", "rename"]),
)
@settings(in_folder, max_examples=200)
def test_odd_metadata(place: tuple[str | int, ...], value: object, how: str, payload: Path) -> None:
    """Any value of the metadata is of another type, out of range, missing or under another name."""
    changed = copy.deepcopy(METADATA)
    parent: Any = changed
    for step in place[:-1]:
        parent = parent[step]
    if how == "replace":
        parent[place[-1]] = value
    else:
        removed = parent.pop(place[-1])
        if how == "rename" and isinstance(parent, dict):
            parent[str(value)] = removed
    open_with(luks2_edit.with_metadata(header_of(LUKS2), changed), payload)


@pytest.mark.parametrize(
    "area",
    [
        b"", b"null", b"[]", b"0", b'"text"', b"{", b"{}", b'{"a":1}x', b"[" * 11_000, b'{"a":' * 2000,
        b"\xff\xfe", b'{"keyslots":NaN}', b'{"keyslots":{},"keyslots":{}}', b'{"a":"\\ud800"}',
    ],
    ids=lambda area: repr(area[:12]),
)  # fmt: skip
def test_area_that_is_no_metadata(area: bytes, payload: Path) -> None:
    """What stands in the place of the metadata is no JSON, or not an object, or not of this world."""
    path = payload.with_name("header.img")
    path.write_bytes(luks2_edit.with_json_area(header_of(LUKS2), area))

    with pytest.raises(lukshdrfs.LukshdrfsError) as caught:
        lukshdrfs.open_volume(payload, header=path, passphrase=b"any")
    assert caught.value.exit_code == 4
    assert len(str(caught.value).splitlines()) == 1
