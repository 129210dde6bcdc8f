"""Headers of both versions: hostile bytes, the choice between the two copies, and what the model says."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import golden_volumes, unpacked
from support.luks2_edit import metadata, with_json_area, with_metadata

from lukshdrfs.errors import HeaderError, UnsupportedFeature
from lukshdrfs.luks.header import MAX_EXTENT, header_extent, parse_header
from lukshdrfs.luks.model import Header, Priority
from lukshdrfs.luks.verify import verify

KIB = 1024
MIB = KIB * KIB
METADATA_SIZES = tuple(16 * KIB << n for n in range(9))
PATIENCE_S = 20.0
"""Far above what any of the large headers takes, far below what a quadratic algorithm would."""

LUKS1 = unpacked("luks1-aes-cbc-essiv-128.header.img.gz")
LUKS2 = unpacked("luks2-pbkdf2-5000.header.img.gz")
XTS = unpacked("luks2-aes-xts-256-s4096.header.img.gz")
FUZZED = {name: unpacked(f"{name}.header.img.gz") for name in ("luks2-tokens", "luks2-reencrypt-half")} | {
    "luks1": LUKS1,
    "luks2": LUKS2,
}


def parsed_or_refused(data: bytes) -> Header | None:
    """Parse a header; nothing but a header or our own error may come out."""
    try:
        header_extent(data[: 2 * METADATA_SIZES[-1]])
        return parse_header(data)
    except HeaderError:
        return None


# --- any bytes -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=5000), st.sampled_from([b"", b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2", b"SKUL\xba\xbe\0\2"]))
def test_random_bytes_are_refused(data: bytes, start: bytes) -> None:
    """No random bytes are a header, with a magic before them or not, padded to a header's size or not."""
    assert parsed_or_refused(start + data) is None
    assert parsed_or_refused((start + data).ljust(40 * KIB, b"\0")) is None


@pytest.mark.parametrize("byte", [0x00, 0xFF])
@pytest.mark.parametrize("start", [b"", b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2"])
@pytest.mark.parametrize("size", [0, 1, 6, 8, 512, 1023, 1024, 4096, 16 * KIB, 32 * KIB, 9 * MIB])
def test_zeros_and_ones_are_refused(byte: int, start: bytes, size: int) -> None:
    """A run of one byte is no header, whatever its size, also behind a magic."""
    data = start[:size] + bytes([byte]) * (size - len(start[:size]))
    if data[:8] == b"LUKS\xba\xbe\0\1" and not any(data[8:]):
        data = data[:8]  # eight slots of zeros are refused like the rest; this is the shortest
    assert parsed_or_refused(data) is None


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(FUZZED)), st.data())
def test_a_truncated_header_is_whole_or_refused(name: str, data: st.DataObject) -> None:
    """A header that is cut off anywhere is refused."""
    size = data.draw(st.integers(0, len(FUZZED[name]) - 1) | st.integers(0, 5000))
    whole = parse_header(FUZZED[name])

    if size < len(whole.area):
        assert parsed_or_refused(FUZZED[name][:size]) is None


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(FUZZED)), st.data())
def test_a_damaged_header_is_a_header_or_refused(name: str, data: st.DataObject) -> None:
    """Changed bytes anywhere in the metadata give a header or HeaderError, and never another error."""
    damaged = bytearray(FUZZED[name])
    limit = 592 if name == "luks1" else 2 * int.from_bytes(damaged[8:16], "big")
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, limit - 1) | st.integers(0, 591))] ^= data.draw(st.integers(1, 255))
    parsed_or_refused(bytes(damaged))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(set(FUZZED) - {"luks1"})), st.data())
def test_damaged_json_with_a_right_checksum_is_a_header_or_refused(name: str, data: st.DataObject) -> None:
    """What an attacker writes into the JSON, whose checksum anybody can make, gives a header or HeaderError."""
    header = FUZZED[name]
    area = bytearray(json.dumps(metadata(header), separators=(",", ":")).encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(area) - 1))
        area[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b"{}", b"[]", b'"', b"-1", b"1e9", b"null", b"true", b"99999999999"])
        )
    parsed_or_refused(with_json_area(header, bytes(area)))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_luks1_header_of_any_numbers_is_a_header_or_refused(data: st.DataObject) -> None:
    """Every number of a LUKS1 header may be anything: a header or HeaderError comes out."""
    header = bytearray(LUKS1)
    edges = st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
    # payload offset, key bytes, iterations; then state, iterations, offset and stripes of the eight slots
    places = [104, 108, 164] + [208 + 48 * slot + at for slot in range(8) for at in (0, 4, 40, 44)]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=5)):
        header[place : place + 4] = data.draw(edges).to_bytes(4, "big")
    parsed_or_refused(bytes(header))


# --- large metadata --------------------------------------------------------------------------------------------------


def binary_copy(document: bytes, hdr_size: int, *, secondary: bool, seqid: int = 1, label: bytes = b"") -> bytes:
    """Return one copy with a right checksum (LUKS2 specification, section 2.1), straight from the table there."""
    header = struct.pack(
        ">6sHQQ48s32s64s40s48sQ", b"SKUL\xba\xbe" if secondary else b"LUKS\xba\xbe", 2, hdr_size, seqid, label,
        b"sha256", bytes(64), b"2f144136-b0de-4b51-b2eb-bd869cc39a6e", b"", hdr_size if secondary else 0,
    )  # fmt: skip
    copy = bytearray(header.ljust(4096, b"\0") + document.ljust(hdr_size - 4096, b"\0"))
    copy[448:512] = hashlib.sha256(copy).digest().ljust(64, b"\0")
    return bytes(copy)


def small_document(hdr_size: int) -> dict[str, Any]:
    """Return the least metadata that are valid: one linear segment and no keyslots."""
    return {
        "keyslots": {},
        "tokens": {},
        "segments": {"0": {"type": "linear", "offset": "0", "size": "dynamic"}},
        "digests": {},
        "config": {"json_size": str(hdr_size - 4096), "keyslots_size": "0"},
    }


def header_of(document: dict[str, Any], hdr_size: int) -> bytes:
    """Return both copies of some metadata."""
    text = json.dumps(document, separators=(",", ":")).encode()
    assert len(text) < hdr_size - 4096
    return binary_copy(text, hdr_size, secondary=False) + binary_copy(text, hdr_size, secondary=True)


def crypt_segment(number: int) -> dict[str, Any]:
    """Return a segment of one sector."""
    return {
        "type": "crypt", "offset": str(512 * number), "size": "512", "iv_tweak": "0",
        "encryption": "aes-xts-plain64", "sector_size": 512,
    }  # fmt: skip


def digest_of(segments: list[str], keyslots: list[str]) -> dict[str, Any]:
    """Return a digest that is never verified."""
    return {"type": "pbkdf2", "keyslots": keyslots, "segments": segments, "hash": "sha256", "iterations": 1000,
            "salt": "A" * 43 + "=", "digest": "A" * 43 + "="}  # fmt: skip


def many_segments(count: int) -> dict[str, Any]:
    """Return metadata with that many segments, one digest over all."""
    document = small_document(4 * MIB)
    document["segments"] = {str(number): crypt_segment(number) for number in range(count)}
    document["digests"] = {"0": digest_of(list(document["segments"]), [])}
    return document


def test_ten_thousand_segments_are_parsed_in_bounded_time() -> None:
    """10 000 segments are valid, and take seconds at the most."""
    header = header_of(many_segments(10_000), 4 * MIB)
    start = time.process_time()
    found = parse_header(header)

    assert time.process_time() - start < PATIENCE_S
    assert [segment.offset for segment in found.segments] == [512 * number for number in range(10_000)]


def test_segments_bound_to_a_digest_again_and_again_take_bounded_time() -> None:
    """A digest whose list is long and names the same segment over and over costs no more than its length."""
    document = many_segments(4_000)
    document["digests"]["0"]["segments"] = ["0"] * 100_000 + list(document["segments"])
    header = header_of(document, 4 * MIB)
    start = time.process_time()
    parse_header(header)

    assert time.process_time() - start < 3.0, "each segment searched the whole list"


@pytest.mark.parametrize("change", ["no last", "overlap", "unordered", "one unbound"])
def test_ten_thousand_segments_with_one_mistake_are_refused(change: str) -> None:
    """One wrong segment among thousands is found."""
    document = many_segments(10_000)
    segments = document["segments"]
    if change == "no last":
        segments["10001"] = segments.pop("9999")
        document["digests"]["0"]["segments"] = list(segments)
    elif change == "overlap":
        segments["5000"]["size"] = "1024"
    elif change == "unordered":
        segments["5000"]["offset"] = segments["5001"]["offset"]
    else:
        document["digests"]["0"]["segments"].remove("7000")
    with pytest.raises(HeaderError):
        parse_header(header_of(document, 4 * MIB))


# --- two copies ------------------------------------------------------------------------------------------------------


def good(copy: bytes) -> bytes:
    return copy


def with_wrong_checksum(copy: bytes) -> bytes:
    return copy[:500] + bytes([copy[500] ^ 1]) + copy[501:4096] + bytes([copy[4096] ^ 1]) + copy[4097:]


def zeroed(copy: bytes) -> bytes:
    return bytes(len(copy))


@pytest.mark.parametrize("hdr_size", METADATA_SIZES)
@pytest.mark.parametrize("first_damage", [good, with_wrong_checksum, zeroed], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("second_damage", [good, with_wrong_checksum, zeroed], ids=lambda damage: damage.__name__)
def test_the_newer_of_the_good_copies_is_used(
    hdr_size: int, first_damage: Callable[[bytes], bytes], second_damage: Callable[[bytes], bytes]
) -> None:
    """Of two good copies the one with the higher seqid counts, the first if they are equal; else the good one."""
    text = json.dumps(small_document(hdr_size)).encode()
    for first_seqid, second_seqid in ((5, 5), (6, 5), (5, 6), (0, (1 << 64) - 1)):
        data = first_damage(
            binary_copy(text, hdr_size, secondary=False, seqid=first_seqid, label=b"first")
        ) + second_damage(binary_copy(text, hdr_size, secondary=True, seqid=second_seqid, label=b"second"))
        expected = None
        if first_damage is good and (second_damage is not good or first_seqid >= second_seqid):
            expected = ("first", first_seqid)
        elif second_damage is good:
            expected = ("second", second_seqid)

        header = parsed_or_refused(data)

        assert (header and (header.label, header.seqid)) == expected
        if header is not None:
            sound = first_damage is good and second_damage is good and first_seqid == second_seqid
            assert bool(header.warnings) == (not sound), "what was worked around is told"
            assert header.metadata_size == hdr_size


def test_the_secondary_is_where_it_says() -> None:
    """A second copy that was made for another place is not used."""
    text = json.dumps(small_document(16 * KIB)).encode()
    second = binary_copy(text, 16 * KIB, secondary=True)

    assert parsed_or_refused(bytes(16 * KIB) + second) is not None
    assert parsed_or_refused(bytes(32 * KIB) + second) is None
    assert parsed_or_refused(second) is None


@pytest.mark.parametrize("algorithm", [b"", b"md5", b"crc32c", b"none", b"sha256x"])
def test_a_checksum_that_is_unknown_is_refused_by_name(algorithm: bytes) -> None:
    """A copy whose checksum cannot be computed is not trusted."""
    text = json.dumps(small_document(16 * KIB)).encode()
    copy = bytearray(binary_copy(text, 16 * KIB, secondary=False))
    copy[72:104] = algorithm.ljust(32, b"\0")
    with pytest.raises(UnsupportedFeature, match="checksum"):
        parse_header(bytes(copy) + bytes(16 * KIB))


def test_every_bit_counts_in_the_checksum() -> None:
    """A flipped bit anywhere in a copy, its padding included, makes it invalid."""
    text = json.dumps(small_document(16 * KIB)).encode()
    copy = binary_copy(text, 16 * KIB, secondary=False)
    for at in (*range(0, 512, 7), 512, 4095, 4096, 5000, 16 * KIB - 1):
        if 480 <= at < 512:
            continue  # behind the 32 bytes of SHA-256 in a field of 64
        damaged = copy[:at] + bytes([copy[at] ^ 0x10]) + copy[at + 1 :]
        assert parsed_or_refused(damaged + bytes(16 * KIB)) is None, at


@pytest.mark.parametrize("version", [3, 4, 255, 256, 0xFFFF])
def test_later_versions_are_refused_by_number(version: int) -> None:
    """A version that is not known is told, and not tried as one that is."""
    with pytest.raises(UnsupportedFeature, match=str(version)):
        parse_header(b"LUKS\xba\xbe" + version.to_bytes(2, "big") + LUKS2[8:])


def test_a_header_larger_than_any_is_refused_before_it_is_read() -> None:
    """A LUKS1 header that claims terabytes of keyslots is refused by its first bytes."""
    header = bytearray(LUKS1)
    header[208 + 40 : 208 + 44] = b"\xff\xff\xff\xff"
    with pytest.raises(HeaderError, match=str(MAX_EXTENT)):
        header_extent(bytes(header[:4096]))


# --- what the model says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(name for name, golden in golden_volumes().items() if golden.header_file))
def test_golden_headers_say_what_the_manifest_says(name: str) -> None:
    """Of each golden volume that can be opened, cipher, sector size, offset and key size are the manifest's."""
    golden = golden_volumes()[name]
    if golden.expect == "fail" and golden.header_file and name == "luks1-version-3":
        return  # no header at all: see test_later_versions_are_refused_by_number
    assert golden.header_file is not None
    header = parse_header(unpacked(golden.header_file))

    assert header.type == golden.fields["format"]
    if header.requirements or not golden.fields["cipher"]:
        return
    segment = header.segments[0]
    assert (segment.encryption, segment.sector_size, segment.offset) == (
        golden.fields["cipher"], golden.fields["sector_size"], golden.fields["data_offset"],
    )  # fmt: skip
    keys = {slot.key_size * 8 for slot in header.keyslots if slot.id in header.digests[0].keyslots}
    assert keys in ({golden.fields["key_bits"]}, {golden.fields["key_bits"] + 256}), "with the integrity key, if any"


def test_luks1_is_told_in_the_words_of_luks2() -> None:
    """A LUKS1 header has the keyslots that are in use, one digest over them, and one dynamic segment of 512 bytes."""
    header = parse_header(LUKS1)

    assert [slot.id for slot in header.keyslots] == [0]
    assert header.keyslots[0].area.encryption == header.segments[0].encryption == "aes-cbc-essiv:sha256"
    assert header.keyslots[0].priority == Priority.NORMAL
    assert header.digests[0].keyslots == {0}
    assert header.digests[0].segments == {0}
    assert len(header.digests[0].digest) == 20
    assert (header.segments[0].size, header.segments[0].sector_size) == (None, 512)


@pytest.mark.parametrize("state", [0, 1, 0x00AC71F2, 0xFFFFFFFF, 0x0000DEAE])
def test_a_luks1_keyslot_in_an_unknown_state_is_damaged(state: int) -> None:
    """A slot that is neither in use nor free is listed with that problem, and stops no other."""
    header = bytearray(LUKS1)
    header[208 + 48 : 208 + 52] = state.to_bytes(4, "big")
    slots = {slot.id: slot for slot in parse_header(bytes(header)).keyslots}

    assert slots[0].problem == ""
    assert f"{state:#x}" in slots[1].problem


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("stripes", 208 + 44, 3999),
        ("stripes of a free slot", 208 + 7 * 48 + 44, 0),
        ("area in the header", 208 + 40, 1),
        ("areas overlap", 208 + 40, int.from_bytes(LUKS1[208 + 88 : 208 + 92], "big")),
        ("no key", 108, 0),
        ("key of 4 GiB", 108, 0xFFFFFFFF),
        ("area past the end", 208 + 40, 0x00FFFFFF),
        ("areas reach into the data", 104, 8),
    ],
)
def test_luks1_fields_are_bounded(name: str, place: int, value: int) -> None:
    """Stripes other than 4000, and areas that overlap anything or are not there, are refused."""
    header = bytearray(LUKS1)
    header[place : place + 4] = value.to_bytes(4, "big")
    with pytest.raises(HeaderError):
        parse_header(bytes(header))


def test_a_luks1_header_may_be_salvaged_without_its_free_keyslots() -> None:
    """Cut off behind the last keyslot in use, a LUKS1 header opens if that is asked for, with a warning."""
    whole = parse_header(LUKS1)
    area = whole.keyslots[0].area
    cut = LUKS1[: area.offset + area.size]

    with pytest.raises(HeaderError, match="cut off"):
        parse_header(cut)
    found = parse_header(cut, unused_areas_missing=True)
    assert found.keyslots == whole.keyslots
    assert found.warnings
    with pytest.raises(HeaderError, match="cut off"):
        parse_header(cut[:-1], unused_areas_missing=True)


@pytest.mark.parametrize("priority", [0, 1, 2])
def test_priorities(priority: int) -> None:
    """A keyslot has the priority that the header gives it, and the normal one if it gives none."""
    document = metadata(LUKS2)
    assert parse_header(LUKS2).keyslots[0].priority == Priority.NORMAL
    document["keyslots"]["0"]["priority"] = priority

    assert parse_header(with_metadata(LUKS2, document)).keyslots[0].priority == priority


def test_keyslots_are_ordered_by_number() -> None:
    """Keyslots come in the order of their numbers, not of their names or their places in the JSON."""
    document = metadata(unpacked("luks2-unbound-keyslot.header.img.gz"))
    slots = document["keyslots"]
    document["keyslots"] = {"10": slots["0"], "9": slots["1"]}
    for digest in document["digests"].values():
        digest["keyslots"] = [{"0": "10", "1": "9"}[name] for name in digest["keyslots"]]
    header = parse_header(with_metadata(unpacked("luks2-unbound-keyslot.header.img.gz"), document))

    assert [slot.id for slot in header.keyslots] == [9, 10]


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("kdf", "salt"), "AAAA", "salt"),
        (("kdf", "salt"), "?", "base64"),
        (("kdf", "iterations"), 1 << 32, "iterations"),
        (("kdf", "iterations"), -1, "iterations"),
        (("af", "stripes"), 4001, "4001"),
        (("af", "stripes"), 1, "stripes"),
        (("key_size",), 0, "key"),
        (("key_size",), 1 << 20, "needs"),
    ],
)
def test_damage_in_one_keyslot_is_that_keyslots_problem(where: tuple[str, ...], value: object, named: str) -> None:
    """A keyslot that cannot be opened says why; the header stays valid, so that others can."""
    document = metadata(LUKS2)
    parent: Any = document["keyslots"]["0"]
    for key in where[:-1]:
        parent = parent[key]
    parent[where[-1]] = value

    assert named in parse_header(with_metadata(LUKS2, document)).keyslots[0].problem


def problems(header: Header) -> list[str]:
    """Return what is wrong with keyslots and digests, empty texts included."""
    return [slot.problem for slot in header.keyslots] + [digest.problem for digest in header.digests]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("keyslots", "0", "type"), "something-new"),
        (("keyslots", "0", "kdf", "type"), "scrypt"),
        (("keyslots", "0", "kdf", "hash"), "keccak-384"),
        (("keyslots", "0", "af", "type"), "luks3"),
        (("keyslots", "0", "af", "hash"), "md5-sha1"),
        (("keyslots", "0", "area", "type"), "cooked"),
        (("keyslots", "0", "area", "encryption"), "xchacha20,aes-adiantum-plain64"),
        (("keyslots", "0", "area", "key_size"), 17),
        (("digests", "0", "type"), "argon2id"),
        (("digests", "0", "hash"), "blake3"),
        (("segments", "0", "type"), "hw-opal"),
        (("segments", "0", "encryption"), "rot13-xts-plain64"),
    ],
)
def test_what_is_not_known_here_is_no_damage(where: tuple[str, ...], value: object) -> None:
    """A header that asks for something new is whole: it has no problem, is verified, and says what it asks for."""
    document = metadata(LUKS2)
    parent: Any = document
    for key in where[:-1]:
        parent = parent[key]
    parent[where[-1]] = value
    header = parse_header(with_metadata(LUKS2, document))

    assert not any(problems(header))
    findings = verify(header, len(header.area))
    assert not [finding for finding in findings if finding.severity == "error"]
    told = [finding.text for finding in findings if finding.severity == "warning"]
    assert any(str(value if value != 17 else 17 * 8) in text for text in told)


@pytest.mark.parametrize("name", [b"md5", b"sha257", b"KECCAK-256"])
def test_a_luks1_hash_that_is_not_known_is_no_damage(name: bytes) -> None:
    """A LUKS1 header with a hash that is not implemented is read; its keyslots and its digest say which it is."""
    header = parse_header(LUKS1[:72] + name.ljust(32, b"\0") + LUKS1[104:])

    assert not any(problems(header))
    assert all(name.decode() in slot.unsupported for slot in header.keyslots)
    assert name.decode() in header.digests[0].unsupported
    assert not [finding for finding in verify(header, len(LUKS1)) if finding.severity == "error"]


@pytest.mark.parametrize("name", [b"", b"\xff\xfe", b"sha 256", b"sha\x01256"])
def test_what_can_be_no_name_of_a_hash_is_damage(name: bytes) -> None:
    """A LUKS1 header that has something in the hash's place that no program calls a hash is not valid."""
    with pytest.raises(HeaderError) as caught:
        parse_header(LUKS1[:72] + name.ljust(32, b"\0") + LUKS1[104:])
    assert not isinstance(caught.value, UnsupportedFeature)


@pytest.mark.parametrize("where", ["before", "at the end", "over both", "wrapping"])
def test_keyslot_areas_stay_in_their_place(where: str) -> None:
    """An area outside of the keyslots area, or on another one, is refused."""
    base = unpacked("luks2-unbound-keyslot.header.img.gz")
    document = metadata(base)
    start = 2 * int(document["config"]["json_size"]) + 8192
    end = start + int(document["config"]["keyslots_size"])
    area = document["keyslots"]["0"]["area"]
    area["offset"] = {
        "before": str(start - 512),
        "at the end": str(end - int(area["size"]) + 512),
        "over both": str(int(document["keyslots"]["1"]["area"]["offset"]) - 512),
        "wrapping": str((1 << 64) - int(area["size"])),
    }[where]
    with pytest.raises(HeaderError):
        parse_header(with_metadata(base, document))


@pytest.mark.parametrize("salt", [0, 7, 31, 33, 64])
def test_a_digest_with_another_salt_is_damaged(salt: int) -> None:
    """A digest whose salt has not 32 bytes says so, and the header stays valid."""
    document = metadata(LUKS2)
    document["digests"]["0"]["salt"] = "AAAA" * (salt // 3) + {0: "", 1: "AA==", 2: "AAA="}[salt % 3]
    if salt == 0:
        document["digests"]["0"]["salt"] = "===="

    assert "salt" in parse_header(with_metadata(LUKS2, document)).digests[0].problem


def test_the_area_is_the_headers_bytes_and_not_more() -> None:
    """The bytes that are kept end where the keyslot areas do; what follows is the payload's, if attached."""
    followed = XTS + b"the payload" * 1000
    header = parse_header(followed)

    assert header.area == XTS[: len(header.area)]
    assert len(header.area) == 2 * header.metadata_size + header.keyslots_size
    assert header_extent(followed) == len(header.area)


def test_a_headers_text_has_no_key_material() -> None:
    """The text of a header leaves out the areas' bytes."""
    header = parse_header(LUKS2)

    assert "area=b" not in repr(header)
    assert len(repr(header)) < 5000
