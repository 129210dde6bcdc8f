"""Where a header is read from and how much of it; which part of a payload it means; how large numbers may be."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from support.edited import AREA, CIPHER, KEY, UUID, adding, after, empty, opened
from support.luks2_edit import metadata, with_metadata

from lukshdrfs.errors import DeviceError, HeaderError, InUse, UsageError
from lukshdrfs.headers import read_header
from lukshdrfs.headers import source as header_source
from lukshdrfs.headers.source import parse_from
from lukshdrfs.headers.tolerance import Tolerance
from lukshdrfs.luks.header import header_extent, parse_header
from lukshdrfs.luks.keys import hashes
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.unlock_work import _duration, check_work
from lukshdrfs.luks.luks2.format import Luks2Format
from lukshdrfs.luks.luks2.strict_json import load
from lukshdrfs.luks.model import Digest, Header, Kdf
from lukshdrfs.payload import FilePayload
from lukshdrfs.recognition import Signature
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import open_volume
from lukshdrfs.volume.placement import Window, window_of

LUKS2 = after(empty(2, slots=2), adding(b"one"), adding(b"two"))
DAMAGED = LUKS2[:450] + b"\0\0\0" + LUKS2[453:]


@pytest.mark.parametrize("how", [Tolerance(), Tolerance(foreign_signature=True), Tolerance(checksums_wrong=True)])
def test_a_damaged_header_under_something_else_is_read_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Tolerance
) -> None:
    """By itself it is refused, with what lies there named; a sound one is not even looked at."""
    asked: list[object] = []

    def signatures(source: object) -> tuple[Signature, ...]:
        asked.append(source)
        return (Signature("ext4", "content", 0x438, 2, by_libblkid=True),)

    monkeypatch.setattr(header_source, "recognise", signatures)
    path = tmp_path / "header"
    path.write_bytes(DAMAGED)
    with path.open("rb") as stream:
        if how != Tolerance():
            assert opened(parse_from(stream.fileno(), str(path), tolerance=how).area, b"two") == 1
            assert asked == []
        else:
            with pytest.raises(HeaderError, match=f"header {path}: .*ext4 is there too"):
                parse_from(stream.fileno(), str(path))
            assert len(asked) == 1
    path.write_bytes(LUKS2)
    read_header(path)
    assert len(asked) == (0 if how != Tolerance() else 1)


def test_a_forced_header_is_all_that_is_there(tmp_path: Path) -> None:
    """It is read as far as a header could go, put right in memory alone, and what was done is told."""
    path = tmp_path / "header"
    path.write_bytes(DAMAGED + b"behind")
    header = read_header(path, tolerance=Tolerance(checksums_wrong=True))
    assert header.area == LUKS2
    assert path.read_bytes() == DAMAGED + b"behind"


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that gives a part at a time is asked for the rest; one that ends before that is cut off."""
    path = tmp_path / "header"
    path.write_bytes(LUKS2)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 5000), offset))
    assert read_header(path).area == LUKS2
    with path.open("rb") as stream:
        assert header_source._read_range(stream.fileno(), 12_345) == LUKS2[:12_345]
        assert header_source._read_range(stream.fileno(), len(LUKS2) + 1) == LUKS2


def test_the_largest_header_is_legal() -> None:
    """Metadata of 4 MiB, twice, and 128 MiB of keyslots; what claims a byte more is no header."""
    with SecretBytes.copy_of(KEY) as key:
        area = Luks2Format(CIPHER, 512, UUID, metadata_size=4 << 20, keyslots_size=AREA).written(key)
    changed = metadata(area)
    changed["config"]["keyslots_size"] = str(128 << 20)
    assert header_extent(with_metadata(area, changed)) == 136 << 20
    sectors = (136 << 20) // 512 - 250
    for more in (0, 1):
        luks1 = bytearray(empty(1))
        luks1[208 + 48 * 7 + 40 : 208 + 48 * 7 + 44] = (sectors + more).to_bytes(4, "big")
        if more:
            with pytest.raises(HeaderError, match="claims"):
                header_extent(bytes(luks1))
        else:
            assert header_extent(bytes(luks1)) == 136 << 20


# --- windows ---------------------------------------------------------------------------------------------------------


def header_at(*segments: tuple[int, int | None]) -> Header:
    """Return a header whose segments have these offsets and sizes."""
    header = parse_header(LUKS2)
    first = header.segments[0]
    made = tuple(dataclasses.replace(first, id=n, offset=at, size=size) for n, (at, size) in enumerate(segments))
    return dataclasses.replace(header, segments=made)


@pytest.mark.parametrize(
    ("headers", "window", "expected"),
    [
        ([header_at((0, None))], Window(None, None), None),
        ([header_at((0, None))], Window(4096, None), None),
        ([header_at((0, None))], Window(None, 8192), (0, 8192)),
        ([header_at((0, None))], Window(4096, 8192), (4096, 8192)),
        ([header_at((512, None))], Window(None, 8192), (512, 8192)),
        ([header_at((0, 1024))], Window(None, None), (0, 1024)),
        ([header_at((0, 1024))], Window(4096, None), (4096, 1024)),
        ([header_at((512, 1024))], Window(None, None), (512, 1024)),
        ([header_at((512, 1024), (2048, 1536))], Window(None, None), (512, 3072)),
        ([header_at((0, 1024), (2048, 512))], Window(4096, None), (4096, 2560)),
        ([header_at((512, 1024)), header_at((8192, 4096)), header_at((2048, 512))], Window(None, None), (512, 11776)),
        ([header_at((512, 1024)), header_at((0, None))], Window(None, None), None),
    ],
)
def test_the_part_of_a_payload_that_headers_mean(
    headers: list[Header], window: Window, expected: tuple[int, int] | None
) -> None:
    """From the first byte to the last that any of them could mean; all of it where one has no end."""
    assert window_of(headers, window) == expected


def test_only_the_part_that_is_meant_is_locked(tmp_path: Path) -> None:
    """Two volumes with headers of their own are open side by side on one payload; one without a window has it all."""
    header, payload = tmp_path / "header", tmp_path / "payload"
    header.write_bytes(LUKS2)
    payload.write_bytes(bytes(16384))
    with open_volume(payload, header=header, volume_key=KEY, offset=0, size=4096) as one:
        with open_volume(payload, header=header, volume_key=KEY, offset=4096, size=512) as two:
            one.pwrite(b"one", 0)
            two.pwrite(b"two", 0)
            assert (one.size, two.size) == (4096, 512)
        with pytest.raises(InUse):
            open_volume(payload, header=header, volume_key=KEY, offset=3584, size=1024)
        with pytest.raises(InUse):
            open_volume(payload, header=header, volume_key=KEY)
    with FilePayload.open(payload, read_only=False):
        pass
    with pytest.raises(UsageError):
        open_volume(payload, header=header)


def test_one_sector_is_a_volume(tmp_path: Path) -> None:
    """A payload with exactly one sector has a volume of that; with a byte less, none."""
    header, payload = tmp_path / "header", tmp_path / "payload"
    header.write_bytes(LUKS2)
    payload.write_bytes(bytes(512))
    with open_volume(payload, header=header, volume_key=KEY) as volume:
        assert volume.size == 512
    payload.write_bytes(bytes(511))
    with pytest.raises(DeviceError, match="not even one fits"):
        open_volume(payload, header=header, volume_key=KEY)


# --- numbers and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [20, 21, 30, 5000])
def test_a_number_that_is_far_too_large_stays_so(digits: int) -> None:
    """Whatever is not in 64 bits is above or below them, however many digits it has."""
    number = "9" * digits
    found = load(b'{"a": %s, "b": -%s}' % (number.encode(), number.encode()) + b"\0")
    assert found["a"] > (1 << 64) - 1
    assert found["b"] < -(1 << 64) + 1


def test_the_table_of_hashes_is_what_is_made_anew() -> None:
    """Names, libgcrypt's names and digest sizes come out the same whenever they are asked for."""
    assert hashes._known_hashes() == hashes._HASHES
    assert {hashes._gcrypt_name(name) for name in ("blake2b-512", "sha512-256", "sha3-256", "sm3")} == {
        "BLAKE2B_512", "SHA512_256", "SHA3-256", "SM3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("sha256", "SHA-256", True), ("sha256", "sha512", False), ("unknown", "unknown", True),
        ("unknown", "sha256", False), ("sha256", "unknown", False), ("other", "unknown", False),
        ("whirlpool", "wp512", True), ("", "", True),
    ],
)  # fmt: skip
def test_two_names_of_one_hash(left: str, right: str, *, same: bool) -> None:
    """Names are compared by what they mean; one that is unknown is the same as itself alone."""
    assert hashes.is_same_hash(left, right) is same


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7199, "120 minutes"), (7200, "2 hours"),
     (36_000, "10 hours")],
)  # fmt: skip
def test_how_long_a_search_may_take(seconds: int, text: str) -> None:
    """A second for a GiB of Argon2's memory times passes, in the largest unit of which it is two."""
    assert _duration(seconds << 20) == text


def test_the_work_of_a_kdf() -> None:
    """Argon2's is its memory times its passes; four iterations of PBKDF2 take as long as a KiB."""
    limits = KdfLimits()
    assert limits.work_of(Kdf("argon2id", b"", 5, memory_kib=700, lanes=4)) == 3500
    assert limits.work_of(Kdf("pbkdf2", b"", 4003, hash="sha256")) == limits.work_of_iterations(4003) == 1000


@pytest.mark.parametrize(("seconds", "told"), [(59, False), (60, False), (61, True)])
def test_more_than_a_minute_is_told(caplog: pytest.LogCaptureFixture, seconds: int, *, told: bool) -> None:
    """What may take a minute is not worth a line, what takes longer is; what was spent before is not said again."""
    header = parse_header(LUKS2)
    costly = Kdf("argon2id", bytes(32), seconds, memory_kib=1 << 20, lanes=1)
    digest = dataclasses.replace(header.digests[0], iterations=1)
    slot = dataclasses.replace(header.keyslots[0], kdf=costly)
    header = dataclasses.replace(header, keyslots=(slot,), digests=(digest,))
    assert check_work(header, [slot], KdfLimits()) == seconds << 20
    assert (caplog.text != "") == told
    caplog.clear()
    assert check_work(header, [], KdfLimits(), before=seconds << 20) == seconds << 20
    assert caplog.text == ""


def test_a_header_is_about_the_digest_of_its_segment() -> None:
    """Digests and keyslots are found by number, and what is not there is None."""
    header = parse_header(LUKS2)
    other = Digest(5, "pbkdf2", frozenset({9}), frozenset({7}))
    header = dataclasses.replace(header, digests=(header.digests[0], other))
    assert [header.digest_of_segment(number) for number in (0, 7, 5)] == [*header.digests, None]
    assert [header.digest_of_keyslot(number) for number in (0, 1, 9, 5)] == [*[header.digests[0]] * 2, other, None]
    assert [header.keyslot(number) for number in (0, 1, 2)] == [*header.keyslots, None]
    assert metadata(LUKS2)["digests"]["0"]["keyslots"] == ["0", "1"]
