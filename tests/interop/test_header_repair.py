"""Damaged headers shown to `header repair` and to `cryptsetup repair`: both make the same of them, or both refuse."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from support.created import COSTS, SECRETS, SMALL, create
from support.cryptsetup import keyslot_of, try_cryptsetup
from support.golden import unpacked
from support.luks2_edit import CHECKSUM, metadata
from support.mounts import Argument, lukshdrfs

pytestmark = pytest.mark.needs("cryptsetup")

Damage = Callable[[bytearray], object]


def put(offset: int, data: bytes) -> Damage:
    """Return the damage of bytes that are overwritten."""

    def do(header: bytearray) -> None:
        header[offset : offset + len(data)] = data

    return do


def both(*damages: Damage) -> Damage:
    def do(header: bytearray) -> None:
        for damage in damages:
            damage(header)

    return do


def repaired(folder: Path, header: bytes, damage: Damage) -> tuple[bytes, bytes | None, bytes | None]:
    """Return a damaged header, and what we and cryptsetup make of it; None where it is refused."""
    ours, theirs = folder / "ours.img", folder / "theirs.img"
    damaged = bytearray(header)
    damage(damaged)
    ours.write_bytes(damaged)
    shutil.copyfile(ours, theirs)
    by_us = lukshdrfs("header", "repair", ours).returncode == 0
    by_them = try_cryptsetup("repair", theirs).returncode == 0
    if not by_us:
        assert ours.read_bytes() == damaged
    return bytes(damaged), ours.read_bytes() if by_us else None, theirs.read_bytes() if by_them else None


# --- LUKS1 -----------------------------------------------------------------------------------------------------

USED = 2
"""Keyslots that are in use: 0 and 1."""


def stripes(slot: int, value: int) -> Damage:
    return put(208 + slot * 48 + 44, struct.pack(">I", value))


def place(slot: int, value: int) -> Damage:
    return put(208 + slot * 48 + 40, struct.pack(">I", value))


SIGNATURE = put(510, b"\x55\xaa")

LUKS1_MENDED: dict[str, Damage] = {
    "partition-table": put(446, bytes(64) + b"\x55\xaa"),
    "stripes": stripes(3, 0),
    "stripes-many": both(*(stripes(slot, 12345) for slot in range(USED, 8))),
    "offset": place(5, 1),
    "offset-of-another": place(4, 8),
    "salt-and-offset": both(put(208 + 4 * 48 + 8, b"junk" * 8), place(4, 0)),
    "hash-in-capitals": put(72, b"SHA256"),
    "hash-mixed": put(72, b"Sha256"),
    "everything": both(SIGNATURE, stripes(2, 1), place(3, 7), put(72, b"SHA256")),
    "state-and-offset": both(put(208 + 3 * 48, b"\0\0\0\0"), place(3, 1)),
}
LUKS1_MENDED_BY_US: dict[str, Damage] = {
    "partition-signature": SIGNATURE,
    "offset-past-the-end": place(7, 0xFFFFFFFF),
}
"""cryptsetup leaves the one, which disturbs nobody, and gives up at the other."""
LUKS1_NOTHING: dict[str, Damage] = {
    "sound": lambda header: None,
    "salt-of-unused": put(208 + 4 * 48 + 8, b"junk" * 8),
    "iterations-of-unused": put(208 + 4 * 48 + 4, b"\0\0\1\1"),
    "unusual-key-size": put(108, struct.pack(">I", 48)),
    "unusual-first-area": place(0, 2),
}
LUKS1_REFUSED: dict[str, Damage] = {
    "used-stripes": stripes(1, 3999),
    "used-offset-in-header": place(0, 1),
    "used-overlap": place(1, 9),
    "magic": put(0, b"LUKX"),
    "version": put(6, b"\0\3"),
    "key-size-and-stripes": both(put(108, struct.pack(">I", 48)), stripes(3, 0)),
    "first-area-and-stripes": both(place(0, 2), stripes(3, 0)),
}


@pytest.fixture(scope="module")
def luks1(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A LUKS1 header with keyslots 0 and 1 in use."""
    return made(tmp_path_factory.mktemp("luks1"), "--type", "luks1")


@pytest.fixture(scope="module")
def luks2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A LUKS2 header with keyslots 0 and 1 in use."""
    return made(tmp_path_factory.mktemp("luks2"), *SMALL, "--label", "name", "--subsystem", "sub")


def made(folder: Path, *options: Argument) -> bytes:
    for name, secret in zip(("key", "second"), SECRETS, strict=True):
        (folder / name).write_bytes(secret)
    create(
        *options, *COSTS["pbkdf2"], "--key-file", folder / "key", "--key-file", folder / "second",
        "--header", folder / "header.img", "--size", "64K", folder / "payload.img",
    )  # fmt: skip
    return (folder / "header.img").read_bytes()


@pytest.mark.parametrize("damage", LUKS1_MENDED.values(), ids=LUKS1_MENDED.keys())
def test_luks1_is_mended_alike(damage: Damage, luks1: bytes, tmp_path: Path) -> None:
    """What cryptsetup repairs of a LUKS1 header we repair, to the very same bytes: those that it had before."""
    damaged, ours, theirs = repaired(tmp_path, luks1, damage)
    assert ours == theirs
    assert ours is not None
    assert ours != damaged
    assert ours == luks1


@pytest.mark.parametrize("damage", LUKS1_MENDED_BY_US.values(), ids=LUKS1_MENDED_BY_US.keys())
def test_luks1_is_mended_by_us_alone(damage: Damage, luks1: bytes, tmp_path: Path) -> None:
    """In a keyslot that is not in use we mend more than cryptsetup; what is made of it is the header as it was."""
    damaged, ours, theirs = repaired(tmp_path, luks1, damage)
    assert ours == luks1
    assert theirs in (None, damaged)


@pytest.mark.parametrize("damage", LUKS1_NOTHING.values(), ids=LUKS1_NOTHING.keys())
def test_luks1_that_needs_nothing(damage: Damage, luks1: bytes, tmp_path: Path) -> None:
    """A header that is sound, or odd where it does not matter, is left as it is."""
    damaged, ours, theirs = repaired(tmp_path, luks1, damage)
    assert ours == theirs == damaged


def test_a_luks1_hash_that_is_not_known_is_left(luks1: bytes, tmp_path: Path) -> None:
    """Nothing is mended where a hash is not known; with a sound copy it is seen to be damage, and mended."""
    (tmp_path / "sound.img").write_bytes(luks1)
    damaged, ours, theirs = repaired(tmp_path, luks1, put(72, b"sha257"))
    assert ours == damaged
    assert theirs is None
    header = tmp_path / "damaged.img"
    header.write_bytes(damaged)
    done = lukshdrfs("header", "repair", "--header", header, "--from", tmp_path / "sound.img")
    assert done.returncode == 0
    assert "sha257" in done.stdout
    assert header.read_bytes()[:592] == luks1[:592]


@pytest.mark.parametrize("damage", LUKS1_REFUSED.values(), ids=LUKS1_REFUSED.keys())
def test_luks1_beyond_repair(damage: Damage, luks1: bytes, tmp_path: Path) -> None:
    """Where a keyslot in use is damaged, or who knows what it was, both programs refuse and nothing is written."""
    _, ours, theirs = repaired(tmp_path, luks1, damage)
    assert ours is None
    assert theirs is None


@pytest.mark.parametrize("mode", [b"ecb-plain", b"ecb-", b"ecb-xyz"])
def test_luks1_ecb_with_an_iv(mode: bytes, tmp_path: Path) -> None:
    """An IV behind `ecb`, which old programs wrote, is taken away."""
    header = unpacked("luks1-aes-ecb.header.img.gz")
    _, ours, theirs = repaired(tmp_path, header, put(40, mode))
    assert ours == theirs == header


# --- LUKS2 -----------------------------------------------------------------------------------------------------

COPY = 16 << 10


def checksummed(start: int, change: Damage) -> Damage:
    """Return a change of one copy whose checksum is right afterwards."""

    def do(header: bytearray) -> None:
        copy = header[start : start + COPY]
        change(copy)
        copy[CHECKSUM] = bytes(64)
        copy[CHECKSUM] = hashlib.sha256(copy).digest().ljust(64, b"\0")
        header[start : start + COPY] = copy

    return do


OLD = put(16, (1).to_bytes(8, "big"))

LUKS2_ONE_COPY: dict[str, Damage] = {
    "primary-zeroed": put(0, bytes(COPY)),
    "primary-magic": put(0, bytes(6)),
    "primary-checksum": put(448, b"\0\1\2\3"),
    "primary-json": put(4096, b"[" * 100),
    "primary-json-invalid": checksummed(0, put(4096, b'{"x":1}\0')),
    "primary-size": put(8, b"\xff" * 8),
    "primary-old": checksummed(0, OLD),
    "secondary-zeroed": put(COPY, bytes(COPY)),
    "secondary-magic": put(COPY, b"LUKS"),
    "secondary-json": put(COPY + 5000, b"\1"),
    "secondary-json-invalid": checksummed(COPY, put(4096, b'{"x":1}\0')),
    "secondary-old": checksummed(COPY, OLD),
}
LUKS2_BOTH_COPIES: dict[str, Damage] = {
    "zeroed": put(0, bytes(2 * COPY)),
    "checksums": both(put(448, b"\0\1\2\3"), put(COPY + 448, b"\0\1\2\3")),
    "magic-and-json": both(put(0, bytes(6)), put(COPY + 4096, b"\1")),
    "json-invalid": both(checksummed(0, put(4096, b"{}\0")), checksummed(COPY, put(4096, b"{}\0"))),
}


def fields(header: bytes, start: int) -> tuple[bytes, bytes, object]:
    """Return what one copy says: all but the checksum and its salt."""
    copy = header[start : start + COPY]
    return copy[:104], copy[168:448], metadata(copy)


@pytest.mark.parametrize("damage", LUKS2_ONE_COPY.values(), ids=LUKS2_ONE_COPY.keys())
def test_luks2_copy_is_restored_alike(damage: Damage, luks2: bytes, tmp_path: Path) -> None:
    """Whichever copy is bad, both programs make it say what the other one says, and touch nothing else."""
    _, ours, theirs = repaired(tmp_path, luks2, damage)
    assert ours is not None
    assert theirs is not None
    for start in (0, COPY):
        assert fields(ours, start) == fields(theirs, start)
        copy = ours[start : start + COPY]
        assert copy[CHECKSUM] == hashlib.sha256(copy[:448] + bytes(64) + copy[512:]).digest().ljust(64, b"\0")
    assert ours[2 * COPY :] == theirs[2 * COPY :] == luks2[2 * COPY :]
    (tmp_path / "key").write_bytes(SECRETS[1])
    assert keyslot_of(tmp_path / "ours.img", tmp_path / "key") == 1
    # and both see a sound header in what the other one made
    for name in ("ours.img", "theirs.img"):
        before = (tmp_path / name).read_bytes()
        assert lukshdrfs("header", "verify", tmp_path / name).returncode == 0
        assert try_cryptsetup("repair", tmp_path / name).returncode == 0
        assert lukshdrfs("header", "repair", tmp_path / name).returncode == 0
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("damage", LUKS2_BOTH_COPIES.values(), ids=LUKS2_BOTH_COPIES.keys())
def test_luks2_without_a_good_copy(damage: Damage, luks2: bytes, tmp_path: Path) -> None:
    """With both copies bad, both programs refuse."""
    _, ours, theirs = repaired(tmp_path, luks2, damage)
    assert ours is None
    assert theirs is None
