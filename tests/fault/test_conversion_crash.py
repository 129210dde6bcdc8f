"""
A power cut at any moment of a conversion loses nothing: it is recovered, and goes on to its end.

The writes are those that the program really made, as strace saw them; the rest is replayed: cut between any two of
them, inside each, and with any part of what had not been synced on the storage.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from support.conversions import MODES, Conversion, conversion, steps
from support.crash import Files, record

from lukshdrfs.headers import read_header
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Stage

pytestmark = [pytest.mark.root, pytest.mark.needs("cryptsetup", "strace")]

KIB = 1 << 10
SIZE = 96 * KIB + 512
"""Three zones, and the last one is no whole block."""
BY_MODE = pytest.mark.parametrize("mode", MODES)
BY_RESILIENCE = pytest.mark.parametrize("resilience", ["checksum", "journal"])
STATES = int(os.environ.get("LUKSHDRFS_STATES", "16"))
"""So many states of each recording are tried, spread evenly; there are some 200 to 600 in all."""
BY_THEM = 3
"""So many of them are finished by cryptsetup, too."""


def cut(made: Conversion, folder: Path, state: Files) -> Conversion:
    """Return the volume as a power cut has left it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in state.items():
        (folder / name).write_bytes(data)
    left = made.copied(folder, copy=False)
    if not left.header.exists():
        return left
    conversion_state = ReencryptionState.of(read_header(left.header, warn=False))
    assert conversion_state is None or conversion_state.stage is not Stage.FINISHED, "cryptsetup would do it all again"
    return left


def recorded(
    tmp_path: Path, mode: str, resilience: str, *, size: int = SIZE, all_states: bool = False
) -> tuple[Conversion, list[Files]]:
    """Return a volume and what a power cut could leave of its conversion, which has begun."""
    made = conversion(mode, tmp_path / "volume", size, old=("--sector-size", "512"))
    made.ours("--resilience", resilience, "--init-only")
    recording = record(made.folder, mode, "--hotzone-size", "32K", *made.named)
    made.check()
    states = recording.states(steps=2)
    return made, states[:: 1 if all_states else max(1, len(states) // STATES)]


@BY_MODE
@BY_RESILIENCE
def test_a_cut_anywhere_loses_nothing(tmp_path: Path, mode: str, resilience: str) -> None:
    """Whatever was on the storage, the volume opens with all its data, read-only too, and its conversion ends."""
    made, states = recorded(tmp_path, mode, resilience)
    crashed = 0
    for state in states:
        left = cut(made, tmp_path / "left", state)
        conversion_state = ReencryptionState.of(read_header(left.header, warn=False))
        crashed += conversion_state is not None and conversion_state.stage is Stage.CRASHED
        if conversion_state is None:
            left.check()
            continue
        before = left.payload.read_bytes()
        left.check_as_it_is()
        assert left.payload.read_bytes() == before, "looking at it has changed it"
        left.check_as_it_is(writing=True)
        if ReencryptionState.of(read_header(left.header)):
            assert steps(left, 100, 16 * KIB)
        left.check()
    assert crashed > STATES // 10


@BY_MODE
@BY_RESILIENCE
def test_a_cut_is_recovered_by_cryptsetup(tmp_path: Path, mode: str, resilience: str) -> None:
    """
    Cryptsetup's repair and resume take what we have left, at any moment.

    With a journal, it repairs no file of another size than whole blocks of 4096 bytes, whoever has begun.
    """
    made, states = recorded(tmp_path, mode, resilience, size=SIZE if resilience == "checksum" else SIZE - 512)
    kinds: dict[str, list[Files]] = {}
    for state in states:
        left = cut(made, tmp_path / "left", state)
        found = ReencryptionState.of(read_header(left.header, warn=False))
        kinds.setdefault("over" if found is None else found.stage.value, []).append(state)
    chosen = [*kinds["crashed"][:: max(1, len(kinds["crashed"]) // BY_THEM)], *kinds["clean"][::25]]
    for state in chosen:
        left = cut(made, tmp_path / "left", state)
        left.repaired_by_theirs()
        left.payload_cut_to_size()
        if read_header(left.header, warn=False).requirements:  # it ends the conversion after the last zone
            left.theirs("--resume-only", "--hotzone-size", "16k")
        left.payload_cut_to_size()
        left.check()


@BY_RESILIENCE
def test_a_cut_at_the_beginning_leaves_the_payload_alone(tmp_path: Path, resilience: str) -> None:
    """The header of an encryption is whole or not there, and says from the first moment that nothing is encrypted."""
    made = conversion("encrypt", tmp_path / "volume", SIZE)
    recording = record(made.folder, "encrypt", "--init-only", "--resilience", resilience, *made.cost, *made.named)
    for state in recording.states(steps=3):
        left = cut(made, tmp_path / "left", state)
        assert left.payload.read_bytes() == made.plain
        if left.header.exists():
            left.check_as_it_is()


def test_states_are_those_that_were_meant(tmp_path: Path) -> None:
    """The replay sees each phase of a step: otherwise the tests above would prove nothing."""
    made, states = recorded(tmp_path, "reencrypt", "checksum", all_states=True)
    seen = set()
    for state in states:
        header = read_header(cut(made, tmp_path / "left", state).header, warn=False)
        found = ReencryptionState.of(header)
        seen.add(json.dumps(found and [(part.side.value, part.start) for part in found.parts]))
    borders = [0, 32 * KIB, 64 * KIB, 96 * KIB]
    wanted = [None, [("old", 0)]]
    for at, after in itertools.pairwise([*borders, SIZE]):
        new = [("new", 0)] if at else []
        old = [("old", after)] if after < SIZE else []
        wanted.append([*new, ("hot", at), *old])
        if after < SIZE:
            wanted.append([("new", 0), ("old", after)])
    assert seen == {json.dumps(one) for one in wanted}
