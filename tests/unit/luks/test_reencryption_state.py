"""What state a conversion in place is in, and what vouches for it: of cryptsetup's own headers, and of changed ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import golden_volumes, unpacked
from support.luks2_edit import Json, metadata, with_metadata

from lukshdrfs.errors import HeaderError, LukshdrfsError, UnsupportedFeature
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.luks2.reencryption.digest import metadata_message, verify_metadata
from lukshdrfs.luks.luks2.reencryption.edits import renumbered, step_parts, with_parts
from lukshdrfs.luks.luks2.reencryption.state import Part, Protection, ReencryptionState, Side, Stage
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume.half_converted import unlock_keys

VOLUMES = golden_volumes()
NAMES = ["luks2-reencrypt-init", "luks2-reencrypt-half", "luks2-encrypt-half", "luks2-decrypt-half"]
HALF = unpacked("luks2-reencrypt-half.header.img.gz")


def state_of(area: bytes) -> ReencryptionState:
    """Return the state of a header that has one."""
    state = ReencryptionState.of(parse_header(area))
    assert state is not None
    return state


@pytest.mark.parametrize("name", NAMES)
def test_digests_that_cryptsetup_has_made(name: str) -> None:
    """The metadata digest of each fixture is ours, from both keys; with another key, or another area, it is not."""
    area = unpacked(f"{name}.header.img.gz")
    header, state = parse_header(area), state_of(area)
    with SecretBytes.copy_of(VOLUMES[name].keys[0].secret) as secret:
        keys = unlock_keys(state, lambda digest: unlock(header, digest, secret))
    with keys:
        verify_metadata(state, keys.old, keys.new, KdfLimits())
        moved = dataclasses.replace(state, protection=dataclasses.replace(state.protection, offset=4096))
        with pytest.raises(HeaderError):
            verify_metadata(moved, keys.old, keys.new, KdfLimits())
        with SecretBytes.random(64) as other, pytest.raises(HeaderError):
            verify_metadata(state, None if keys.old is None else other, keys.new if keys.old else other, KdfLimits())


@pytest.mark.parametrize(
    ("name", "mode", "forward", "stage"),
    [
        ("luks2-reencrypt-init", "reencrypt", True, Stage.CLEAN),
        ("luks2-reencrypt-half", "reencrypt", True, Stage.CLEAN),
        ("luks2-encrypt-half", "encrypt", True, Stage.CLEAN),
        ("luks2-decrypt-half", "decrypt", False, Stage.CLEAN),
    ],
)
def test_state_that_cryptsetup_has_left(name: str, mode: str, stage: Stage, *, forward: bool) -> None:
    """Mode, direction and stage, and parts that follow one another."""
    state = state_of(unpacked(f"{name}.header.img.gz"))
    assert (state.mode, state.forward, state.stage) == (mode, forward, stage)
    starts = [part.start for part in state.parts]
    ends = [part.start + (part.size or 0) for part in state.parts[:-1]]
    assert starts == [0, *ends]
    assert [part.side for part in state.parts] == sorted(
        (part.side for part in state.parts), key=[Side.NEW, Side.OLD][:: 1 if forward else -1].index
    )


def message(state: ReencryptionState) -> bytes:
    """Return what the digest is of, with keys of ones and twos."""
    old, new = SecretBytes.copy_of(b"1" * 64), SecretBytes.copy_of(b"2" * 64)
    with old, new, metadata_message(state, old, new) as made:
        return bytes(made.view)


Change = Callable[[ReencryptionState, int], ReencryptionState]


def of_part(part: str, field: str) -> Change:
    """Return what changes a field of the protection or of a backup."""

    def change(state: ReencryptionState, number: int) -> ReencryptionState:
        here = getattr(state, part)
        return dataclasses.replace(
            state, **{part: dataclasses.replace(here, **{field: _other(getattr(here, field), number)})}
        )

    return change


COVERED: list[Change] = [
    lambda state, n: dataclasses.replace(state, version=state.version + n),
    lambda state, n: dataclasses.replace(state, mode=["encrypt", "decrypt"][n % 2]),
    lambda state, _: dataclasses.replace(state, forward=not state.forward),
    *(of_part("protection", field) for field in ("type", "offset", "size", "hash", "block_size")),
    *(
        of_part(side, field)
        for side in ("previous", "final")
        for field in ("type", "offset", "size", "iv_tweak", "encryption", "sector_size")
    ),
]


def _other(value: Any, number: int) -> Any:
    return value + "x" * number if isinstance(value, str) else number - 1 if value is None else value + number


@given(change=st.sampled_from(COVERED), number=st.integers(1, 8))
def test_whatever_is_covered_changes_the_digest(change: Change, number: int) -> None:
    """No field that steers a conversion can be changed without the keys."""
    state = dataclasses.replace(state_of(HALF), protection=Protection("checksum", 28672, 4096, "sha256", 512))
    assert message(change(state, number)) != message(state)


@given(data=st.data())
def test_a_step_on_any_zone_is_read_as_it_was_written(data: st.DataObject) -> None:
    """Hot, then new: what the metadata say is what the state said, whatever the zones; the backups stay as they are."""
    for name in NAMES:
        area = unpacked(f"{name}.header.img.gz")
        state, document = state_of(area), metadata(area)
        size = VOLUMES[name].volume_size
        old = next(part for part in state.parts if part.side is Side.OLD)
        end = size if old.size is None else old.start + old.size
        sectors = data.draw(st.integers(1, min((end - old.start) // 4096, 8)))
        start = old.start if state.forward else end - sectors * 4096
        for side in (Side.HOT, Side.NEW):
            parts = step_parts(state, size, start, start + sectors * 4096, side)
            document = with_parts(document, state, parts)
            state = renumbered(dataclasses.replace(state, parts=parts))
            found = state_of(with_metadata(area, document))
            assert found == state
            assert found.stage is (Stage.CRASHED if side is Side.HOT else Stage.CLEAN)
            assert message(found) == message(state_of(area))


def _changed(edit: Callable[[Json], None]) -> bytes:
    document = copy.deepcopy(metadata(HALF))
    edit(document)
    return with_metadata(HALF, document)


def _set(path: str, value: object) -> Callable[[Json], None]:
    *parents, last = path.split("/")

    def edit(document: Json) -> None:
        for name in parents:
            document = document[name]
        document[last] = value

    return edit


def checksums(**changes: object) -> Json:
    """Return an area for checksums."""
    here = metadata(HALF)["keyslots"]["2"]["area"]
    return {
        "offset": here["offset"],
        "size": here["size"],
        "type": "checksum",
        "hash": "sha256",
        "sector_size": 4096,
        **changes,
    }


HOSTILE: dict[str, Callable[[Json], None]] = {
    "border moved": _set("segments/0/size", "8192"),
    "border off sectors": _set("segments/0/size", "512"),
    "first part's place": _set("segments/0/offset", "4096"),
    "second part's IV": _set("segments/1/iv_tweak", "1"),
    "mode": _set("keyslots/2/mode", "encrypt"),
    "huge checksum blocks": _set("keyslots/2/area", checksums(sector_size=1 << 30)),
    "checksums of less than a sector": _set("keyslots/2/area", checksums(sector_size=512, offset="0")),
    "area behind the header": _set("keyslots/2/area/offset", str(1 << 40)),
    "area of all": _set("keyslots/2/area/size", str(1 << 62)),
    "data shift of nothing": _set("keyslots/2/area", {"type": "datashift", "offset": "548864", "size": "4096",
                                                       "shift_size": "0"}),
    "data shift": _set("keyslots/2/area", {"type": "datashift", "offset": "548864", "size": "4096",
                                           "shift_size": "1048576"}),
    "final elsewhere": _set("segments/3/offset", "1048576"),
    "an unknown hash": _set("keyslots/2/area", checksums(hash="whirlpool-of-doom")),
    "no backup": lambda document: document["segments"].pop("3"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_contradicts_itself_is_refused(name: str) -> None:
    """Each by an error of its own kind, before a key is asked for or a byte of the payload is used."""
    with pytest.raises(LukshdrfsError) as caught:
        state_of(_changed(HOSTILE[name]))
    assert isinstance(caught.value, (HeaderError, UnsupportedFeature)) or "hash" in name


def test_a_plain_part_is_where_it_has_to_be() -> None:
    """Nothing else says where the plain part of a half-encrypted volume is: it has no IVs, and no digest covers it."""
    area = unpacked("luks2-encrypt-half.header.img.gz")
    document = metadata(area)
    assert document["segments"]["1"]["type"] == "linear"
    document["segments"]["1"]["offset"] = str(int(document["segments"]["1"]["offset"]) + 4096)
    with pytest.raises(HeaderError):
        state_of(with_metadata(area, document))


def test_a_zone_is_never_more_than_its_protection() -> None:
    """A zone in work that is larger than what the area protects would be taken for new where it is old."""
    state, document = state_of(HALF), metadata(HALF)
    old = next(part for part in state.parts if part.side is Side.OLD)
    reach = state.protection.reach
    for size, taken in ((reach, True), (reach + 4096, False)):
        parts = (*(part for part in state.parts if part.side is Side.NEW), Part(Side.HOT, old.start, size),
                 Part(Side.OLD, old.start + size, None))  # fmt: skip
        area = with_metadata(HALF, with_parts(document, state, parts))
        if taken:
            assert state_of(area).stage is Stage.CRASHED
        else:
            with pytest.raises(HeaderError):
                state_of(area)
