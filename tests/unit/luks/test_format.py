"""What `Luks2Format.written` writes is what we and the specification read."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import LukshdrfsError, UnsupportedFeature, UsageError, WrongKey
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.keyslots import add_keyslot
from lukshdrfs.luks.luks2.format import Luks2Format
from lukshdrfs.luks.luks2.layout import LABEL_SIZE
from lukshdrfs.luks.model import Header, Kdf
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import check_usable

KIB = 1024
MIB = KIB * KIB
UUID = str(uuid.UUID(int=0x1234567890))
PBKDF2 = Kdf("pbkdf2", bytes(range(32)), 1000, hash="sha512")
ARGON2 = Kdf("argon2id", bytes(range(32)), 4, memory_kib=64, lanes=1)


def form(cipher: str = "aes-xts-plain64", **options: Any) -> Luks2Format:
    """Return a format."""
    chosen: dict[str, Any] = {"sector_size": 4096, "uuid": UUID} | options
    return Luks2Format(cipher=CipherSpec.parse(cipher), **chosen)


def made(wanted: Luks2Format, key: bytes, passphrase: bytes = b"secret", kdf: Kdf = PBKDF2) -> bytes:
    """Return the bytes of a header with one keyslot."""
    with SecretBytes.copy_of(key) as volume_key, SecretBytes.copy_of(passphrase) as secret:
        area = wanted.written(volume_key)
        slot = NewKeyslot(kdf, wanted.cipher, len(key), wanted.hash)
        return add_keyslot(parse_header(area), volume_key, secret, slot)[1].applied_to(area)


def key_from(header: Header, passphrase: bytes) -> bytes:
    """Return the volume key that a passphrase opens."""
    with SecretBytes.copy_of(passphrase) as secret, unlock(header, header.digests[0], secret).volume_key as key:
        return bytes(key.view)


ciphers = st.sampled_from(
    ["aes-xts-plain64", "aes-cbc-essiv:sha256", "aes-cbc-plain64", "serpent-xts-plain64", "twofish-xts-plain64",
     "camellia-xts-plain64", "aes-xts-plain64be", "cast5-cbc-plain64"]
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(
    ciphers, st.sampled_from([512, 1024, 2048, 4096]), st.sampled_from([PBKDF2, ARGON2]),
    st.sampled_from(["sha256", "sha512", "sha1", "whirlpool", "sha3-256"]), st.binary(max_size=100), st.data(),
)  # fmt: skip
def test_what_is_written_parses_and_unlocks(
    cipher: str, sector_size: int, kdf: Kdf, name: str, passphrase: bytes, data: st.DataObject
) -> None:
    """Any cipher, sector size, KDF and hash makes a header that says them and gives the same key to its passphrase."""
    size = data.draw(st.sampled_from(CipherSpec.parse(cipher).key_sizes))
    key = random.Random(size).randbytes(size)
    header = parse_header(made(form(cipher, sector_size=sector_size, hash=name), key, passphrase, kdf))
    segment, slot, digest = header.segments[0], header.keyslots[0], header.digests[0]

    check_usable(header)
    assert (segment.encryption, segment.sector_size, segment.offset, segment.size) == (cipher, sector_size, 0, None)
    assert slot.kdf == kdf
    assert slot.key_size == size
    assert (slot.area.encryption, slot.area.key_size) == (cipher, size)
    assert slot.af is not None
    assert (slot.af.hash, digest.hash) == (name, name)
    assert header.warnings == ()
    assert key_from(header, passphrase) == key
    with pytest.raises(WrongKey):
        key_from(header, passphrase + b"x")


def test_the_layout_is_cryptsetups() -> None:
    """16 MiB in all: two copies of 16 KiB, then the keyslots; the one area is the first, whole pages long."""
    data = made(form(), bytes(range(64)))
    header = parse_header(data)
    area = header.keyslots[0].area

    assert len(data) == len(header.area) == 16 * MIB
    assert header.metadata_size == 16 * KIB
    assert header.keyslots_size == 16 * MIB - 32 * KIB
    assert area.offset == 32 * KIB
    assert area.offset % 4096 == area.size % 4096 == 0
    assert area.size >= 64 * 4000


@pytest.mark.parametrize("size", [32, 48, 64])
def test_sizes_do_not_depend_on_chance(size: int) -> None:
    """Two headers of one format have the same sizes and JSON lengths, whatever was random."""
    first, second = (parse_header(made(form(), bytes(range(size)))) for _ in range(2))

    assert len(first.area) == len(second.area)
    assert first.keyslots[0].area == second.keyslots[0].area


def test_the_two_copies_differ_in_place_alone() -> None:
    """Both copies have the same JSON and the same fields, but for magic, offset, salt and checksum."""
    data = made(form(label="a label", subsystem="a subsystem"), bytes(range(64)))
    first, second = data[: 16 * KIB], data[16 * KIB : 32 * KIB]

    assert first[4096:] == second[4096:]
    assert (first[:6], second[:6]) == (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
    assert first[6:104] == second[6:104]  # version, size, seqid, label, checksum algorithm
    assert first[104:168] != second[104:168]  # salt
    assert first[168:256] == second[168:256]  # uuid, subsystem
    assert (int.from_bytes(first[256:264], "big"), int.from_bytes(second[256:264], "big")) == (0, 16 * KIB)
    assert not any(first[264:448] + second[264:448])
    assert not any(first[512:4096] + second[512:4096])


def test_each_copys_checksum_is_over_all_of_it() -> None:
    """The checksum of a copy is SHA-256 over it, with zeros in the checksum's place."""
    data = made(form(), bytes(range(64)))
    for start in (0, 16 * KIB):
        copy = bytearray(data[start : start + 16 * KIB])
        stored, copy[448:512] = bytes(copy[448:512]), bytes(64)
        assert stored == hashlib.sha256(copy).digest() + bytes(32)


def test_one_copy_alone_opens() -> None:
    """With either copy gone, the other one opens the volume."""
    key = bytes(range(64))
    data = made(form(), key)
    for broken in (bytes(16 * KIB) + data[16 * KIB :], data[: 16 * KIB] + bytes(16 * KIB) + data[32 * KIB :]):
        assert key_from(parse_header(broken), b"secret") == key


def test_the_json_is_in_cryptsetups_words() -> None:
    """64-bit numbers are decimal strings, and `json_size` and `keyslots_size` are what they are."""
    data = made(form(), bytes(range(64)))
    document = json.loads(data[4096 : 16 * KIB].rstrip(b"\0"))

    assert document["config"] == {"json_size": "12288", "keyslots_size": "16744448"}
    assert document["segments"]["0"] == {
        "type": "crypt", "offset": "0", "size": "dynamic", "iv_tweak": "0", "encryption": "aes-xts-plain64",
        "sector_size": 4096,
    }  # fmt: skip
    assert document["tokens"] == {}
    assert document["digests"]["0"]["keyslots"] == document["digests"]["0"]["segments"] == ["0"]


def test_nothing_secret_is_in_the_header() -> None:
    """Neither the volume key nor the passphrase is in the header's bytes."""
    key = random.Random(1).randbytes(64)
    data = made(form(), key, b"a passphrase to search for")

    assert key not in data
    assert key[:16] not in data
    assert b"a passphrase to search for" not in data


def test_nothing_random_is_used_twice() -> None:
    """Two headers of one volume have other salts, other key material and other filling."""
    first, second = made(form(), bytes(range(64))), made(form(), bytes(range(64)))

    assert first[104:168] != second[104:168]
    assert parse_header(first).digests[0].salt != parse_header(second).digests[0].salt
    assert first[32 * KIB : 33 * KIB] != second[32 * KIB : 33 * KIB]
    assert first[-KIB:] != second[-KIB:]
    assert any(first[-KIB:]), "unused areas do not stand out by zeros"


@pytest.mark.parametrize("text", ["", "x" * LABEL_SIZE, "é" * 23])
def test_labels(text: str) -> None:
    """A label and a subsystem of up to 47 bytes come back."""
    header = parse_header(made(form(label=text, subsystem=text), bytes(range(64))))

    assert (header.label, header.subsystem, header.uuid) == (text, text, UUID)


@pytest.mark.parametrize("text", ["x" * 48, "é" * 24, "a\0b", "\udcff"])
def test_labels_that_do_not_fit_are_wrong_usage(text: str) -> None:
    """A label that is longer, or has a NUL or bytes that are no text, is refused; not cut."""
    for options in ({"label": text}, {"subsystem": text}):
        with pytest.raises(UsageError):
            made(form(**options), bytes(range(64)))


@pytest.mark.parametrize(
    ("wanted", "key"),
    [
        (form(), bytes(range(63))),
        (form(), bytes(64)),
        (form(hash="unknown"), bytes(range(64))),
        (form(sector_size=1536), bytes(range(64))),
        (form("aes-cbc-essiv:sha1"), bytes(range(32))),
    ],
)
def test_what_could_not_be_opened_is_not_written(wanted: Luks2Format, key: bytes) -> None:
    """A key, hash, sector size or cipher with which the volume could not be used is refused."""
    with pytest.raises(LukshdrfsError) as caught:
        made(wanted, key)
    assert isinstance(caught.value, UnsupportedFeature) or "sector size" in str(caught.value)
