"""A header and a payload put together: what fits, what is refused before any secret is needed, how much there is."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import golden_volumes, unpacked
from support.luks2_edit import metadata, with_metadata
from support.memory_payload import MemoryPayload
from support.plaintext import plaintext

import lukshdrfs
from lukshdrfs.errors import DeviceError, HeaderError, LukshdrfsError, UnsupportedFeature, UsageError
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.model import Digest, Header, Segment
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import LockedVolume, Window, check_usable

BASE = unpacked("luks2-pbkdf2-5000.header.img.gz")
KEY = bytes(range(64))
MIB = 1 << 20


def segment(number: int, offset: int, size: int | None, **changes: Any) -> Segment:
    """Return an AES-XTS segment, or what `changes` make of it."""
    return dataclasses.replace(Segment(number, "crypt", offset, size, 0, "aes-xts-plain64"), **changes)


def header_with(*segments: Segment) -> Header:
    """Return a header whose one digest binds all segments to KEY."""
    digest = hashlib.pbkdf2_hmac("sha256", KEY, bytes(32), 10, 32)
    ids = frozenset(each.id for each in segments)
    return Header(
        version=2, uuid="an identifier", keyslots=(), segments=segments, area=bytes(4096),
        digests=(Digest(0, "pbkdf2", frozenset(), ids, "sha256", 10, bytes(32), digest),),
    )  # fmt: skip


def locked(header: Header, payload_size: int, window: Window | None = None) -> LockedVolume:
    """Put a header together with a payload of zeros."""
    return LockedVolume(header, MemoryPayload(payload_size), detached=True, window=window)


@pytest.mark.parametrize(
    "name",
    ["offline-reencrypt", "opal", "inline-hw-tags", "made-up", ""],
)
def test_a_requirement_is_parsed_and_forbids_the_volume(name: str) -> None:
    """Whatever a header requires is listed, and refuses the volume by name before any secret is asked for."""
    document = metadata(BASE)
    document["config"]["requirements"] = {"mandatory": [name]}
    header = parse_header(with_metadata(BASE, document))

    assert header.requirements == (name,)
    with pytest.raises(UnsupportedFeature, match=f"requires {name}"):
        check_usable(header)
    with pytest.raises(UnsupportedFeature):
        locked(header, MIB)


def test_every_missing_requirement_is_named() -> None:
    """Of several requirements the message names each."""
    header = dataclasses.replace(parse_header(BASE), requirements=("opal", "made-up"))
    with pytest.raises(UnsupportedFeature, match="opal, made-up"):
        check_usable(header)


@pytest.mark.parametrize("flags", [["allow-discards"], ["no-read-workqueue", "same-cpu-crypt"], ["made-up"], [""]])
def test_flags_are_hints(flags: list[str]) -> None:
    """Activation flags, also unknown ones, are listed and refuse nothing."""
    document = metadata(BASE)
    document["config"]["flags"] = flags
    header = parse_header(with_metadata(BASE, document))

    assert header.flags == tuple(flags)
    check_usable(header)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"flags": ("in-reencryption",)}, "in-reencryption"),
        ({"flags": ("made-up",)}, "made-up"),
        ({"integrity": "hmac(sha256)"}, "integrity"),
        ({"type": "inline"}, "inline"),
        ({"type": "hw-opal-crypt"}, "hw-opal-crypt"),
        ({"type": ""}, "type"),
        ({"encryption": "cipher_null-ecb"}, "cipher_null"),
        ({"encryption": "null"}, "null"),
        ({"encryption": "capi:xts(aes)-plain64"}, "capi:"),
        ({"encryption": ""}, "does not encrypt"),
        ({"encryption": "rot13-xts-plain64"}, "rot13"),
        ({"sector_size": 8192}, "8192"),
        ({"sector_size": 1536}, "1536"),
    ],
)
def test_what_a_segment_asks_for_is_implemented_or_refused(changes: dict[str, Any], named: str) -> None:
    """A segment with anything that is not implemented is refused by name, also as the second of two."""
    sound = segment(0, 0, 4 * 8192)
    for header in (
        header_with(segment(0, 0, None, **changes)),
        header_with(sound, segment(1, 1 << 16, None, **changes)),
    ):
        with pytest.raises(HeaderError) as caught:
            check_usable(header)
        assert named in str(caught.value)
        with pytest.raises(HeaderError):
            locked(header, MIB)


def test_a_lone_iv_tweak_is_refused_with_both_readings() -> None:
    """One segment with an `iv_tweak` has two readings; the message has both first sector numbers, and none is taken."""
    with pytest.raises(UnsupportedFeature) as caught:
        check_usable(header_with(segment(0, 0, None, iv_tweak=4711)))

    assert "first sector's IV is 4711" in str(caught.value)
    assert "cryptsetup 2.6 it is 0" in str(caught.value)


def test_no_encrypted_segment_is_refused() -> None:
    """A header of linear segments alone would store plaintext under any passphrase."""
    for segments in (
        [segment(0, 0, None, type="linear", encryption="")],
        [segment(0, 0, 512, type="linear", encryption=""), segment(1, 512, None, type="linear", encryption="")],
    ):
        with pytest.raises(UnsupportedFeature, match="no segment"):
            check_usable(header_with(*segments))


def test_a_linear_segment_beside_an_encrypted_one_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A segment that is stored unencrypted is used, and the log says so."""
    check_usable(header_with(segment(0, 0, 512, type="linear", encryption=""), segment(1, 512, None)))

    assert "segment 0 is linear" in caplog.text


def test_segments_have_their_own_ivs() -> None:
    """In a volume of several segments each one's sectors count from its `iv_tweak`, and a linear one is as it is."""
    header = header_with(
        segment(0, 0, 1024),
        segment(1, 8192, 512, type="linear", encryption=""),
        segment(2, 4096, None, iv_tweak=1000),
    )
    payload = MemoryPayload(16384)
    volume = LockedVolume(header, payload, detached=True).unlock_with_volume_key(SecretBytes.copy_of(KEY))
    alone = MemoryPayload(16384)
    expected = LockedVolume(header_with(segment(0, 0, None)), alone, detached=True).unlock_with_volume_key(
        SecretBytes.copy_of(KEY)
    )
    volume.pwrite(bytes(3000), 0)
    expected.pwrite(bytes(16384), 0)

    assert payload.content(0, 1024) == alone.content(0, 1024), "segment 0 counts from 0"
    assert payload.content(8192, 512) == bytes(512), "segment 1 is plain"
    assert payload.content(1024, 1024) == bytes(1024), "nothing between the segments"
    # the sector with the number 1000 of a volume that counts from 0
    wide = MemoryPayload(1100 * 512)
    LockedVolume(header_with(segment(0, 0, None)), wide, detached=True).unlock_with_volume_key(
        SecretBytes.copy_of(KEY)
    ).pwrite(bytes(1024), 1000 * 512)
    assert payload.content(4096, 1024) == wide.content(1000 * 512, 1024), "segment 2 counts from 1000"


def test_a_key_is_verified_once_however_many_segments_it_opens() -> None:
    """Of a thousand segments under one digest, the key is derived once: opening takes no longer than for one."""
    segments = [segment(number, number * 512, 512) for number in range(1000)]
    header = header_with(*segments)
    costly = dataclasses.replace(
        header.digests[0], iterations=50_000, digest=hashlib.pbkdf2_hmac("sha256", KEY, bytes(32), 50_000, 32)
    )
    header = dataclasses.replace(header, digests=(costly,))
    with locked(header, MIB).unlock_with_volume_key(SecretBytes.copy_of(KEY)) as volume:
        assert volume.size == 1000 * 512


@given(st.integers(0, 5 * 4096), st.sampled_from([512, 1024, 2048, 4096]), st.sampled_from([0, 512, 4096, 8192]))
def test_a_dynamic_segment_takes_all_whole_sectors(payload_size: int, sector_size: int, offset: int) -> None:
    """A dynamic segment reaches to the payload's last whole sector; without one sector, the payload is too small."""
    header = header_with(segment(0, offset, None, sector_size=sector_size))
    there = payload_size - offset
    if there < sector_size:
        with pytest.raises(DeviceError, match=str(payload_size)):
            locked(header, payload_size)
    else:
        assert locked(header, payload_size).size == there // sector_size * sector_size


def test_a_tail_that_is_no_sector_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """What is behind the last whole sector is not shown, and the log says how much it is."""
    assert locked(header_with(segment(0, 0, None, sector_size=4096)), 8192 + 700).size == 8192
    assert "700 bytes" in caplog.text


@pytest.mark.parametrize("size", [512, 4096, MIB])
def test_a_fixed_segment_fits_the_payload_or_is_refused(size: int) -> None:
    """A segment of fixed size has that size on any payload that holds it; a shorter one is refused, with both sizes."""
    header = header_with(segment(0, 4096, size))

    assert locked(header, 4096 + size).size == size
    assert locked(header, 4096 + size + 5000).size == size
    with pytest.raises(DeviceError) as caught:
        locked(header, 4096 + size - 1)
    assert str(4096 + size) in str(caught.value)
    assert str(4096 + size - 1) in str(caught.value)


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 512, (1 << 64) - 4096])
def test_enormous_segments_are_refused(size: int) -> None:
    """Offsets and sizes near 2^64 are beyond any payload, and do not wrap."""
    for header in (
        header_with(segment(0, 0, size)),
        header_with(segment(0, size, 512)),
        header_with(segment(0, size, None)),
    ):
        with pytest.raises(DeviceError):
            locked(header, MIB)


def test_a_window_says_where_the_header_leaves_it_open() -> None:
    """Offset and size given by hand are used for a header that says neither."""
    header = header_with(segment(0, 0, None))

    assert locked(header, MIB, Window(4096)).size == MIB - 4096
    assert locked(header, MIB, Window(4096, 8192)).size == 8192
    payload = MemoryPayload(MIB)
    LockedVolume(header, payload, detached=True, window=Window(4096)).unlock_with_volume_key(
        SecretBytes.copy_of(KEY)
    ).pwrite(b"x", 0)
    assert payload.content(0, 4096) == bytes(4096)
    assert any(payload.content(4096, 512))


@pytest.mark.parametrize(
    ("header", "window"),
    [
        (header_with(segment(0, 4096, None)), Window(8192)),
        (header_with(segment(0, 0, 4096)), Window(None, 512)),
        (header_with(segment(0, 0, None, sector_size=4096)), Window(512)),
        (header_with(segment(0, 0, None, sector_size=4096)), Window(None, 512)),
        (header_with(segment(0, 0, None)), Window(None, 100)),
    ],
)
def test_a_window_against_the_header_is_wrong_usage(header: Header, window: Window) -> None:
    """Offset or size that contradict the header, or are no whole sectors, are refused as what the user got wrong."""
    with pytest.raises(UsageError):
        locked(header, MIB, window)


def test_a_window_that_the_payload_has_not_is_refused() -> None:
    """A size past the payload's end is wrong usage: the number is the user's own."""
    with pytest.raises(UsageError, match="--size"):
        locked(header_with(segment(0, 0, None)), MIB, Window(None, 2 * MIB))


def test_a_header_without_its_payload_is_told() -> None:
    """A detached header given as if it was attached is wrong usage: there are no data behind it."""
    with pytest.raises(UsageError, match="--header"):
        LockedVolume(header_with(segment(0, 0, None)), MemoryPayload(MIB), detached=False)


def test_properties_say_what_the_volume_is_and_no_secret() -> None:
    """A volume says its type, identifier, cipher and sizes; of its key, only how long it is."""
    with locked(header_with(segment(0, 0, None, sector_size=4096)), MIB).unlock_with_volume_key(
        SecretBytes.copy_of(KEY)
    ) as volume:
        assert volume.properties["uuid"] == "an identifier"
        assert volume.properties["cipher"] == "aes-xts-plain64"
        assert volume.properties["sector_size"] == "4096"
        assert KEY.hex() not in str(dict(volume.properties))


def test_a_key_that_does_not_open_leaves_the_payload_to_the_caller() -> None:
    """After a wrong key the payload is still open, so that another header or key can be tried."""
    payload = MemoryPayload(MIB)
    attempt = LockedVolume(header_with(segment(0, 0, None)), payload, detached=True)
    with pytest.raises(LukshdrfsError):
        attempt.unlock_with_volume_key(SecretBytes.copy_of(bytes(64)))
    assert not payload.closed

    with attempt.unlock_with_volume_key(SecretBytes.copy_of(KEY)) as volume:
        volume.pwrite(b"x", 0)
    assert payload.closed
    assert payload.flushes == 1


READABLE = ["luks2-aes-xts-256-s4096", "luks1-aes-cbc-essiv-128", "luks2-attached", "luks2-detached-offset"]


@pytest.mark.parametrize("name", READABLE)
def test_open_volume_reads_a_golden_volume(name: str, tmp_path: Path) -> None:
    """The plaintext of a volume that cryptsetup made comes out, by passphrase and by volume key, also in part."""
    golden = golden_volumes()[name]
    header, payload = golden.unpack(tmp_path)
    expected = plaintext(golden.plaintext_seed, min(golden.plaintext_size, 20_000))
    volume_key = bytes.fromhex(golden.fields["volume_key_hex"])

    with lukshdrfs.open_volume(payload, header=header, passphrase=golden.keys[0].secret, read_only=True) as volume:
        assert volume.size == golden.volume_size
        assert volume.pread(len(expected), 0) == expected
        assert volume.pread(777, 1000) == expected[1000:1777]
    with lukshdrfs.open_volume(payload, header=header, volume_key=bytearray(volume_key)) as volume:
        assert volume.pread(1000, 0) == expected[:1000]


def test_open_volume_never_writes_to_the_header(tmp_path: Path) -> None:
    """Opening, also with a damaged first copy, and writing leave the header file as it was."""
    golden = golden_volumes()["luks2-aes-xts-256-s4096"]
    header, payload = golden.unpack(tmp_path)
    assert header is not None
    damaged = bytes(4096) + header.read_bytes()[4096:]
    header.write_bytes(damaged)
    with lukshdrfs.open_volume(payload, header=header, passphrase=golden.keys[0].secret) as volume:
        volume.pwrite(b"x" * 5000, 100)

    assert header.read_bytes() == damaged


@pytest.mark.parametrize("secrets", [{}, {"passphrase": b"", "volume_key": b""}])
def test_open_volume_takes_one_secret(secrets: dict[str, bytes], tmp_path: Path) -> None:
    """Neither or both of passphrase and volume key is wrong usage, found before any file is looked at."""
    with pytest.raises(UsageError):
        lukshdrfs.open_volume(tmp_path / "nothing", header=tmp_path / "nothing", passphrase=secrets.get("passphrase"),
                              volume_key=secrets.get("volume_key"))  # fmt: skip


def test_a_failed_opening_leaves_no_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a wrong passphrase the payload can be opened at once, and the passphrase is nowhere in the log."""
    caplog.set_level(logging.DEBUG)
    golden = golden_volumes()["luks2-aes-xts-256-s4096"]
    header, payload = golden.unpack(tmp_path)
    with pytest.raises(lukshdrfs.WrongKey):
        lukshdrfs.open_volume(payload, header=header, passphrase=b"not the passphrase")
    lukshdrfs.open_volume(payload, header=header, passphrase=golden.keys[0].secret).close()

    assert "not the passphrase" not in caplog.text


def test_header_and_payload_in_one_file_are_told(tmp_path: Path) -> None:
    """Naming the header file as the payload too is refused: its data would overwrite it."""
    header = tmp_path / "header"
    header.write_bytes(BASE)
    with pytest.raises(UsageError, match="same file"):
        lukshdrfs.open_volume(header, header=header, passphrase=b"x")
