"""From a passphrase to the volume key: which keyslots are tried, in which order, and what stops the search."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
from collections.abc import Sequence

import pytest
from support.golden import golden_volumes, unpacked

from lukshdrfs.cipher import CipherSpec, SectorCipher, af_split
from lukshdrfs.errors import KeyslotError, LukshdrfsError, NoUsableKeyslot, OutOfMemory, WrongKey
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.kdf import NO_LIMITS, KdfLimits, derive
from lukshdrfs.luks.keys.unlock import accept_volume_key, unlock
from lukshdrfs.luks.keys.unlock_work import check_work, check_work_to_unlock
from lukshdrfs.luks.model import AfSplitter, Digest, Header, Kdf, Keyslot, KeyslotArea, Priority, Segment
from lukshdrfs.secret import SecretBytes

KEY = random.Random(1).randbytes(64)
OTHER_KEY = random.Random(2).randbytes(64)
CIPHER = "aes-xts-plain64"
STRIPES = 4000
AREA_SIZE = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Slot:
    """A keyslot to be made."""

    passphrase: bytes
    priority: int = Priority.NORMAL
    key: bytes = KEY
    problem: str = ""
    digest: int | None = 0
    encryption: str = CIPHER
    area_key_size: int = 64


def digest_of(number: int, key: bytes, keyslots: tuple[int, ...]) -> Digest:
    """Return a digest that verifies a key, as hashlib computes it."""
    salt = bytes([number]) * 32
    return Digest(number, "pbkdf2", frozenset(keyslots), frozenset({0} if number == 0 else ()), "sha256", 10, salt,
                  hashlib.pbkdf2_hmac("sha256", key, salt, 10, 32))  # fmt: skip


def header_with(slots: Sequence[Slot]) -> Header:
    """Return a header with these keyslots, numbered from 0; digest 0 is the volume's, digest 1 another key's."""
    keyslots, area = [], b""
    for number, slot in enumerate(slots):
        kdf = Kdf("pbkdf2", bytes([number]) * 32, 10, hash="sha256")
        place = KeyslotArea(len(area), AREA_SIZE, slot.encryption, slot.area_key_size)
        af = AfSplitter("sha256", STRIPES)
        keyslots.append(Keyslot(number, "luks2", len(slot.key), place, slot.priority, kdf, af, slot.problem))
        material = SecretBytes.copy_of(random.Random(number).randbytes(len(slot.key) * STRIPES))
        af_split(SecretBytes.copy_of(slot.key), material, STRIPES, "SHA256")
        with derive(kdf, SecretBytes.copy_of(slot.passphrase), slot.area_key_size) as area_key:
            SectorCipher(CipherSpec.parse(slot.encryption), area_key, 512).encrypt(material.view, 0)
        area += bytes(material.view).ljust(AREA_SIZE, b"\0")
    bound = [tuple(n for n, slot in enumerate(slots) if slot.digest == digest) for digest in (0, 1)]
    return Header(
        version=2, uuid="", keyslots=tuple(keyslots), area=area,
        digests=(digest_of(0, KEY, bound[0]), digest_of(1, OTHER_KEY, bound[1])),
        segments=(Segment(0, "crypt", 0, None, 0, CIPHER),),
    )  # fmt: skip


def opened(header: Header, passphrase: bytes, keyslot: int | None = None) -> tuple[bytes, int | None]:
    """Unlock and return the volume key and the keyslot that it came from."""
    with SecretBytes.copy_of(passphrase) as secret:
        found = unlock(header, header.digests[0], secret, keyslot)
    with found.volume_key as key:
        return bytes(key.view), found.keyslot


def with_damaged_area(header: Header, keyslot: int) -> Header:
    """Return a header in which one keyslot's area is random."""
    area = bytearray(header.area)
    area[keyslot * AREA_SIZE : (keyslot + 1) * AREA_SIZE] = random.Random(3).randbytes(AREA_SIZE)
    return dataclasses.replace(header, area=bytes(area))


def test_a_passphrase_opens_its_own_keyslot() -> None:
    """Each passphrase gives the same volume key, from its own keyslot."""
    header = header_with([Slot(b"one"), Slot(b"two"), Slot(b"")])

    assert opened(header, b"one") == (KEY, 0)
    assert opened(header, b"two") == (KEY, 1)
    assert opened(header, b"") == (KEY, 2), "the empty passphrase is one too"


@pytest.mark.parametrize("passphrase", [b"", b"on", b"One", b"one\n", b"one\0x", b"one "])
def test_any_other_passphrase_is_wrong(passphrase: bytes) -> None:
    """A passphrase that differs in anything opens nothing; newlines and NULs count."""
    with pytest.raises(WrongKey):
        opened(header_with([Slot(b"one")]), passphrase)


def test_the_preferred_keyslot_is_tried_first() -> None:
    """Of keyslots with one passphrase, a preferred one is used, then the lowest number."""
    same = [Slot(b"same"), Slot(b"same", Priority.PREFER), Slot(b"same", Priority.PREFER)]

    assert opened(header_with(same), b"same")[1] == 1
    assert opened(header_with([Slot(b"same"), Slot(b"same")]), b"same")[1] == 0


def test_an_ignored_keyslot_opens_only_when_it_is_named() -> None:
    """A keyslot of priority `ignore` is not tried by itself, though its passphrase is right; named, it opens."""
    header = header_with([Slot(b"spare", Priority.IGNORE), Slot(b"usual")])

    with pytest.raises(WrongKey):
        opened(header, b"spare")
    assert opened(header, b"spare", keyslot=0) == (KEY, 0)


def test_only_ignored_keyslots_are_none() -> None:
    """Where every keyslot is to be ignored there is no usable one, which is not a wrong passphrase."""
    with pytest.raises(NoUsableKeyslot):
        opened(header_with([Slot(b"spare", Priority.IGNORE)]), b"spare")


def test_a_named_keyslot_is_the_only_one_tried() -> None:
    """The passphrase of another keyslot is wrong for the one that is named; one that is not there is told."""
    header = header_with([Slot(b"one"), Slot(b"two")])

    with pytest.raises(WrongKey):
        opened(header, b"one", keyslot=1)
    with pytest.raises(NoUsableKeyslot, match="7"):
        opened(header, b"one", keyslot=7)


def test_no_keyslots_at_all() -> None:
    """A header without keyslots has no usable one."""
    with pytest.raises(NoUsableKeyslot):
        opened(header_with([]), b"x")


def test_a_damaged_keyslot_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """The search goes on behind a keyslot that cannot be used, in whichever way, and the log names it."""
    good = header_with([Slot(b"first"), Slot(b"second")])
    slot = good.keyslots[0]
    assert slot.kdf is not None
    damaged = [
        dataclasses.replace(slot, problem="its salt is gone"),
        dataclasses.replace(slot, kdf=None),
        dataclasses.replace(slot, kdf=dataclasses.replace(slot.kdf, hash="unknown-hash")),
        dataclasses.replace(slot, kdf=dataclasses.replace(slot.kdf, iterations=(1 << 32) - 1)),
        dataclasses.replace(slot, kdf=Kdf("argon2id", bytes(32), 1, memory_kib=7, lanes=1)),
        dataclasses.replace(slot, af=AfSplitter("unknown-hash", STRIPES)),
        dataclasses.replace(slot, area=dataclasses.replace(slot.area, encryption="cipher_null-ecb")),
        dataclasses.replace(slot, area=dataclasses.replace(slot.area, encryption="aes-unknown-plain")),
        dataclasses.replace(slot, area=dataclasses.replace(slot.area, key_size=63)),
        dataclasses.replace(slot, area=dataclasses.replace(slot.area, offset=len(good.area) - 512)),
        dataclasses.replace(slot, type="reencrypt", kdf=None, af=None),
    ]  # fmt: skip
    for bad in damaged:
        header = dataclasses.replace(good, keyslots=(bad, good.keyslots[1]))
        caplog.clear()
        assert opened(header, b"second") == (KEY, 1)
        assert "keyslot 0" in caplog.text
        with pytest.raises(WrongKey):
            opened(header, b"first")
        alone = dataclasses.replace(good, keyslots=(bad,))
        with pytest.raises(KeyslotError, match="keyslot 0"):
            opened(alone, b"first")


def test_overwritten_key_material_does_not_stop_the_others() -> None:
    """A keyslot whose area is random opens with no passphrase; the others open with theirs."""
    header = with_damaged_area(header_with([Slot(b"first"), Slot(b"second")]), 0)

    assert opened(header, b"second") == (KEY, 1)
    with pytest.raises(WrongKey):
        opened(header, b"first")


def test_too_little_memory_ends_the_search() -> None:
    """A keyslot that needs more memory than there is is not passed over: the passphrase might be its own."""
    header = header_with([Slot(b"first"), Slot(b"second")])
    hungry = dataclasses.replace(
        header.keyslots[0], kdf=Kdf("argon2id", bytes(32), 1, memory_kib=(1 << 32) - 1, lanes=1)
    )
    header = dataclasses.replace(header, keyslots=(hungry, header.keyslots[1]))
    limits = KdfLimits(memory_kib=1 << 32, work_kib=1 << 33)
    with SecretBytes.copy_of(b"second") as secret, pytest.raises(OutOfMemory):
        unlock(header, header.digests[0], secret, limits=limits)


COSTLY = Kdf("argon2id", bytes(32), 64, memory_kib=4 << 20, lanes=4)
"""The most that one keyslot may cost."""


def with_costly(header: Header, *keyslots: int) -> Header:
    """Return a header in which these keyslots have the greatest cost that is allowed."""
    slots = tuple(dataclasses.replace(s, kdf=COSTLY) if s.id in keyslots else s for s in header.keyslots)
    return dataclasses.replace(header, keyslots=slots)


def test_many_costly_keyslots_are_refused_before_any_is_tried() -> None:
    """Each within its own ceiling, 32 keyslots would take hours: that is told at once, with the ways out."""
    header = with_costly(header_with([Slot(b"same")] * 32), *range(32))
    with pytest.raises(KeyslotError, match=r"32 keyslots would take about 2 hours.*--key-slot.*--no-kdf-limit"):
        opened(header, b"same")
    digests = header.digests[:1]
    with pytest.raises(KeyslotError, match="32 keyslots"):
        check_work_to_unlock(header, digests, None, KdfLimits())
    check_work_to_unlock(header, digests, 3, KdfLimits())
    check_work_to_unlock(header, digests, None, NO_LIMITS)


def test_a_named_keyslot_opens_beside_costly_ones() -> None:
    """Only what is tried counts."""
    header = with_costly(header_with([Slot(b"one"), Slot(b"two"), Slot(b"three")]), 0, 1)
    assert opened(header, b"three", keyslot=2) == (KEY, 2)


def test_a_preferred_keyslot_opens_beside_costly_ones() -> None:
    """Preferred keyslots are tried; what comes behind them is refused where it would take too much."""
    header = with_costly(
        header_with([Slot(b"one"), Slot(b"two"), Slot(b"three"), Slot(b"p", Priority.PREFER)]), 0, 1, 2
    )
    check_work_to_unlock(header, header.digests[:1], None, KdfLimits())
    assert opened(header, b"p") == (KEY, 3)
    with pytest.raises(KeyslotError, match="--key-slot"):
        opened(header, b"one")


def test_keyslots_as_they_are_made_are_within_the_ceiling() -> None:
    """32 keyslots with 1 GiB and more passes than a fast machine does in two seconds are no reason to refuse."""
    header = header_with([Slot(b"x")] * 32)
    usual = dataclasses.replace(COSTLY, memory_kib=1 << 20, iterations=14)
    slots = tuple(dataclasses.replace(slot, kdf=usual) for slot in header.keyslots)
    check_work_to_unlock(dataclasses.replace(header, keyslots=slots), header.digests[:1], None, KdfLimits())


def test_the_digest_counts_for_each_keyslot() -> None:
    """What comes out of every keyslot is verified; a costly digest makes many cheap keyslots costly."""
    header = header_with([Slot(b"x")] * 32)
    digest = dataclasses.replace(header.digests[0], iterations=KdfLimits().iterations)
    with pytest.raises(KeyslotError, match="32 keyslots"):
        opened(dataclasses.replace(header, digests=(digest,)), b"x")


def test_a_long_search_is_told_in_advance(caplog: pytest.LogCaptureFixture) -> None:
    """What is allowed and takes minutes is said before it begins."""
    check_work(header_with([]), list(with_costly(header_with([Slot(b"x")]), 0).keyslots), KdfLimits())
    assert "may take about 4 minutes" in caplog.text


def test_an_unbound_keyslot_does_not_give_the_volume_key() -> None:
    """The passphrase of a keyslot that holds another key is told apart from a wrong one, and opens nothing."""
    header = header_with([Slot(b"volume"), Slot(b"another", key=OTHER_KEY, digest=1)])

    assert opened(header, b"volume") == (KEY, 0)
    with pytest.raises(NoUsableKeyslot, match="keyslot 1"):
        opened(header, b"another")
    with pytest.raises(NoUsableKeyslot, match="keyslot 1"):
        opened(header, b"another", keyslot=1)
    with pytest.raises(WrongKey):
        opened(header, b"neither")


def test_only_unbound_keyslots_are_none() -> None:
    """Where every keyslot holds another key, none is usable."""
    with pytest.raises(NoUsableKeyslot):
        opened(header_with([Slot(b"another", key=OTHER_KEY, digest=1)]), b"another")


def test_a_keyslot_of_no_digest_is_damaged() -> None:
    """Without a digest nothing tells a right key from a wrong one, so such a keyslot is not used."""
    header = header_with([Slot(b"one", digest=None)])
    with pytest.raises(LukshdrfsError):
        opened(header, b"one")


@pytest.mark.parametrize("area_key_size", [32, 64])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_area_has_a_key_size_of_its_own(area_key_size: int, size: int) -> None:
    """The KDF makes a key for the area, whatever size the key in it has."""
    header = header_with([Slot(b"one", key=KEY[:size], area_key_size=area_key_size)])
    header = dataclasses.replace(header, digests=(digest_of(0, KEY[:size], (0,)),))

    assert opened(header, b"one")[0] == KEY[:size]


def test_cryptsetups_keyslot_with_an_area_key_of_another_size_opens() -> None:
    """A keyslot of a golden header that holds 32 bytes under an area key of 16 gives what its digest is of."""
    golden = golden_volumes()["luks2-unbound-keyslot"]
    assert golden.header_file is not None
    header = parse_header(unpacked(golden.header_file))
    slot, digest = header.keyslots[1], header.digest_of_keyslot(1)
    assert (slot.area.key_size, slot.key_size) == (16, 32)
    assert digest is not None

    with SecretBytes.copy_of(golden.keys[1].secret) as secret:
        assert len(unlock(header, digest, secret, 1).volume_key) == 32


def test_a_digest_that_asks_for_too_much_is_refused() -> None:
    """A digest's iterations have the ceiling of a keyslot's; none at all are damage."""
    header = header_with([Slot(b"one")])
    for iterations in (0, KdfLimits().iterations + 1, (1 << 32) - 1):
        digest = dataclasses.replace(header.digests[0], iterations=iterations)
        with pytest.raises(KeyslotError, match="iterations"):
            opened(dataclasses.replace(header, digests=(digest,)), b"one")


def test_a_volume_key_is_taken_if_it_is_the_digests() -> None:
    """The right volume key is accepted without a keyslot; one bit less is WrongKey."""
    header = header_with([Slot(b"one")])
    found = accept_volume_key(header, header.digests[0], SecretBytes.copy_of(KEY))
    assert bytes(found.volume_key.view) == KEY
    assert found.keyslot is None

    wrong = bytes([KEY[0] ^ 1]) + KEY[1:]
    for key in (wrong, KEY[:-1], KEY[:32], KEY + b"\0", OTHER_KEY, b""):
        with pytest.raises(WrongKey):
            accept_volume_key(header, header.digests[0], SecretBytes.copy_of(key))


def test_zeros_behind_a_volume_key_make_it_another_one() -> None:
    """HMAC takes a key and the same with zeros behind it for one key; we do not."""
    short = KEY[:32]
    header = header_with([Slot(b"one", key=short)])
    header = dataclasses.replace(header, digests=(digest_of(0, short, (0,)),))
    padded = short + bytes(32)
    assert hashlib.pbkdf2_hmac("sha256", short, b"", 1) == hashlib.pbkdf2_hmac("sha256", padded, b"", 1)

    accept_volume_key(header, header.digests[0], SecretBytes.copy_of(short))
    with pytest.raises(WrongKey, match="64 bytes"):
        accept_volume_key(header, header.digests[0], SecretBytes.copy_of(padded))


def test_what_is_logged_has_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the log nor an error's text has anything of the passphrase or of the volume key."""
    caplog.set_level(logging.DEBUG)
    header = with_damaged_area(header_with([Slot(b"passphrase-one"), Slot(b"passphrase-two")]), 0)
    opened(header, b"passphrase-two")
    with pytest.raises(WrongKey) as caught:
        opened(header, b"passphrase-one")

    said = caplog.text + repr(caught.value)
    for secret in ("passphrase-one", "passphrase-two", KEY.hex(), repr(KEY)[2:-1]):
        assert secret not in said
