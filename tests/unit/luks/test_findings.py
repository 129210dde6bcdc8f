"""What is found in a header without a passphrase, word by word; and mending it in its file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from support.edited import STRIPES, adding, after, empty, opened
from support.luks2_edit import metadata, with_metadata
from support.memory_payload import MemoryPayload

from lukshdrfs.errors import HeaderError, InUse
from lukshdrfs.findings import Finding
from lukshdrfs.headers import repair as header_repair
from lukshdrfs.headers.file import locked_for_writing
from lukshdrfs.headers.pin import HeaderPin
from lukshdrfs.headers.repair import repair_header
from lukshdrfs.headers.source import parse_from
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.luks2.tokens import orphan_tokens
from lukshdrfs.luks.model import Header, Token
from lukshdrfs.luks.verify import not_random, verify

COPY = 16384
LUKS1 = after(empty(1), adding(b"one"))
LUKS2 = after(empty(2, slots=2), adding(b"one"))
EPOCH = 2
MATERIAL = 32 * STRIPES


def sound(number: int) -> Finding:
    """Return what is said of a keyslot in order."""
    return Finding("note", f"keyslot {number}", f"its area ({MATERIAL} bytes) looks random, as it should")


ALIKE = Finding("note", "copies", f"both are sound and alike (epoch {EPOCH})")


def with_names(area: bytes, at: int, epoch: int = EPOCH, label: bytes = b"") -> bytes:
    """Return a header one of whose copies has another epoch and label, and the checksum of that."""
    made = bytearray(area[at : at + COPY])
    made[16:24] = struct.pack(">Q", epoch)
    made[24 : 24 + len(label)] = label
    made[448:512] = bytes(64)
    made[448:480] = hashlib.sha256(made).digest()
    return area[:at] + bytes(made) + area[at + COPY :]


def test_a_sound_header_has_but_notes() -> None:
    """One for both copies, one for each keyslot."""
    assert verify(parse_header(LUKS1), len(LUKS1)) == (sound(0),)
    assert verify(parse_header(LUKS2), len(LUKS2)) == (ALIKE, sound(0))


def test_a_header_without_keyslots_is_worth_knowing_of() -> None:
    """Only the volume key opens it then."""
    [_, finding] = verify(parse_header(empty(2)), 1 << 20)
    assert (finding.severity, finding.subject) == ("warning", "keyslots")


@pytest.mark.parametrize(
    ("area", "text"),
    [
        (with_names(LUKS2, 0, epoch=9), "one is older than the other (epochs 9 and 2)"),
        (with_names(LUKS2, COPY, epoch=9), "one is older than the other (epochs 2 and 9)"),
        (with_names(LUKS2, COPY, label=b"x"), "they have the same epoch and differ"),
        (LUKS2[:COPY] + with_metadata(LUKS2, metadata(LUKS2) | {"x": 1})[COPY : 2 * COPY] + LUKS2[2 * COPY :],
         "they have the same epoch and differ"),
    ],
)  # fmt: skip
def test_copies_that_differ_are_an_error(area: bytes, text: str) -> None:
    """Which of them is older, or that nobody can tell."""
    found = verify(parse_header(area), len(area))
    assert found == (Finding("error", "copies", text), sound(0))


@pytest.mark.parametrize("at", [0, COPY])
def test_a_damaged_copy_is_an_error(at: int) -> None:
    """It is told which one, and nothing of how they compare."""
    area = LUKS2[: at + 449] + b"\xff\xff" + LUKS2[at + 451 :]
    finding, rest = verify(parse_header(area), len(area))
    assert (finding.severity, finding.subject, rest) == ("error", "copies", sound(0))


def changed(what: str, **changes: object) -> Callable[[Header], Header]:
    """Return a change of a header's first keyslot or digest."""

    def change(header: Header) -> Header:
        first, *others = getattr(header, what)
        return dataclasses.replace(header, **{what: (dataclasses.replace(first, **changes), *others)})  # type: ignore[arg-type]

    return change


def overwritten(*sectors: int) -> Callable[[Header], Header]:
    """Return a header with zeros in some sectors of the first keyslot's area."""

    def change(header: Header) -> Header:
        area = bytearray(header.area)
        for sector in sectors:
            at = header.keyslots[0].area.offset + sector * 512
            area[at : at + 512] = bytes(512)
        return dataclasses.replace(header, area=bytes(area))

    return change


LOST = "sectors of its area are not random, the first at byte {}: it has been overwritten, and its key is lost"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed("keyslots", problem="bad"), [ALIKE, Finding("error", "keyslot 0", "bad")]),
        (changed("keyslots", unsupported="odd"), [ALIKE, Finding("warning", "keyslot 0", "odd"), sound(0)]),
        (changed("keyslots", unsupported="odd", af=None), [ALIKE, Finding("warning", "keyslot 0", "odd")]),
        (changed("digests", problem="bad"), [ALIKE, sound(0), Finding("error", "digest 0", "bad")]),
        (changed("digests", unsupported="odd"), [ALIKE, sound(0), Finding("warning", "digest 0", "odd")]),
        (overwritten(0), [ALIKE, Finding("error", "keyslot 0", f"1 of 250 {LOST.format(2 * COPY)}")]),
        (overwritten(249, 7), [ALIKE, Finding("error", "keyslot 0", f"2 of 250 {LOST.format(2 * COPY + 7 * 512)}")]),
        (overwritten(250), [ALIKE, sound(0)]),
        (lambda h: dataclasses.replace(h, area=h.area[: 2 * COPY + MATERIAL]), [ALIKE, sound(0)]),
        (lambda h: dataclasses.replace(h, area=h.area[: 2 * COPY + MATERIAL - 1]),
         [ALIKE, Finding("error", "keyslot 0", "its area is cut off")]),
        (lambda h: dataclasses.replace(h, requirements=("a", "b")),
         [ALIKE, sound(0), Finding("warning", "header", "it requires a, b")]),
        (lambda h: dataclasses.replace(h, tokens=(Token(3, "x", (), {}), Token(4, "x", (0,), {}))),
         [ALIKE, sound(0), Finding("warning", "token 3", "it (x) is bound to no keyslot, and opens nothing")]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(change: Callable[[Header], Header], expected: list[Finding]) -> None:
    """Each thing by itself, as severe as it is, in the words of the field."""
    header = change(parse_header(LUKS2))
    assert list(verify(header, len(LUKS2))) == expected


@pytest.mark.parametrize(
    ("at", "wrong", "severity"),
    [(72, b"SHA256", "warning"), (208 + 48 + 44, struct.pack(">I", 4000), None), (510, b"\x55\xaa", "error")],
)
def test_what_is_wrong_with_luks1_is_found(at: int, wrong: bytes, severity: str | None) -> None:
    """What could be repaired is an error; a hash in capital letters opens, and is only worth knowing of."""
    area = LUKS1[:at] + wrong + LUKS1[at + len(wrong) :]
    found = [finding for finding in verify(parse_header(area), len(area)) if finding.severity != "note"]
    assert [(finding.severity, finding.subject) for finding in found] == ([(severity, "header")] if severity else [])


def test_sectors_that_no_cipher_makes() -> None:
    """Too few different bytes, or one sector twice, are no chance; what is less than a sector is not looked at."""
    random = os.urandom(512 * 4)
    poor, enough = bytes(range(169)) * 4, bytes(range(170)) * 4
    assert not_random(random + random[:511]) == []
    assert not_random(random + random[512:1024]) == [1, 4]
    assert not_random(poor[:512] + random) == [0]
    assert not_random(random + enough[:512]) == []
    assert not_random(b"") == not_random(bytes(511)) == []
    assert not_random(bytes(512)) == [0]


def test_tokens_of_our_own_are_no_orphans() -> None:
    """They lead to no keyslot by what they are; others that do not are."""
    tokens = tuple(
        Token(number, kind, slots, {})
        for number, (kind, slots) in enumerate(
            [
                ("lukshdrfs-payload", ()),
                ("lukshdrfs-passphrase", ()),
                ("x", (1,)),
                ("x", ()),
                ("lukshdrfs-payload", (1,)),
            ],
        )
    )
    assert [t.id for t in orphan_tokens(dataclasses.replace(parse_header(LUKS2), tokens=tokens))] == [3]


# --- mended in its file ----------------------------------------------------------------------------------------------


def test_a_sound_file_is_left_alone(tmp_path: Path) -> None:
    """Not a byte is written, and nothing is said."""
    for area in (LUKS1, LUKS2):
        path = tmp_path / "header"
        path.write_bytes(area)
        assert repair_header(str(path)) == ()
        assert path.read_bytes() == area


@pytest.mark.parametrize(
    ("area", "at", "wrong"),
    [(LUKS1, 510, b"\x55\xaa"), (LUKS1, 72, b"SHA256"), (LUKS2, 450, b"\0\1"), (LUKS2, COPY + 450, b"\0\1")],
)
def test_a_file_is_mended_in_its_place(tmp_path: Path, area: bytes, at: int, wrong: bytes) -> None:
    """What was wrong is said once; afterwards the file is the same one, sound, and opens; what is behind it stays."""
    path = tmp_path / "header"
    behind = b"data" * 1000
    path.write_bytes(area[:at] + wrong + area[at + len(wrong) :] + behind)
    inode = path.stat().st_ino
    said = repair_header(str(path))
    assert len(said) == 1
    assert repair_header(str(path)) == ()
    assert path.stat().st_ino == inode
    mended = path.read_bytes()
    assert mended.endswith(behind)
    assert opened(mended, b"one") == 0
    if area is LUKS1:
        assert mended == area + behind


def test_mending_is_under_the_lock_and_on_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody edits meanwhile, and when it is done it is synced."""
    path = tmp_path / "header"
    path.write_bytes(LUKS1[:510] + b"\x55\xaa" + LUKS1[512:])
    synced = []

    def sync(descriptor: int, what: str) -> None:
        assert what == f"header {path}"
        synced.append(os.pread(descriptor, 2, 510))
        monkeypatch.setattr("lukshdrfs.headers.lock.LOCK_PATIENCE_S", 0)
        with pytest.raises(InUse), locked_for_writing(str(path)):
            pytest.fail("it is not locked")

    monkeypatch.setattr(header_repair, "sync_descriptor", sync)
    repair_header(str(path))
    assert synced == [LUKS1[510:512]]


def test_what_is_beyond_repair_is_told_by_its_name(tmp_path: Path) -> None:
    """The file stays what it was."""
    path = tmp_path / "header"
    for area in (LUKS1[: 208 + 44] + struct.pack(">I", 3) + LUKS1[208 + 48 :], LUKS1[:1000], bytes(2 * COPY)):
        path.write_bytes(area)
        with pytest.raises(HeaderError, match=f"header {path}"):
            repair_header(str(path))
        assert path.read_bytes() == area


# --- read from a payload ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", [LUKS1, LUKS2])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_header_is_read_from_a_payload(area: bytes, *, pinned: bool) -> None:
    """Whatever the storage, the header is what is at its start; pinned by a digest, all of it counts."""
    payload = MemoryPayload(len(area))
    payload.write(memoryview(area), 0)
    pin = HeaderPin(sha256=hashlib.sha256(area).hexdigest()) if pinned else None
    header = parse_from(payload, "nbd://x", pin)
    assert header == parse_header(area)
    assert opened(header.area.ljust(len(area), b"\0"), b"one") == 0
