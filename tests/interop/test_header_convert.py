"""Headers converted by us and by `cryptsetup convert`: the same header comes of it, or a refusal."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.created import COSTS, create
from support.cryptsetup import cryptsetup, dump, json_metadata, try_cryptsetup
from support.golden import golden_volumes, unpacked
from support.keyslots import assert_opens, key_file, opened_by_us, run
from support.mounts import Argument, lukshdrfs

pytestmark = pytest.mark.needs("cryptsetup")

CHEAP = COSTS["pbkdf2"]
MIB = 1 << 20

CIPHERS = [
    ["--cipher", "aes-xts-plain64", "--key-size", "512"],
    ["--cipher", "aes-xts-plain64", "--key-size", "256", "--hash", "sha512"],
    ["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--hash", "sha1"],
    ["--cipher", "aes-cbc-plain64", "--key-size", "128"],
]
BY_PLACE = pytest.mark.parametrize(
    ("place", "cipher"),
    [("attached", CIPHERS[0]), *(("detached", cipher) for cipher in CIPHERS)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1::2]),
)
SECRETS = {"first": 0, "second": 2, "sixth": 6, "last": 7}


def make(folder: Path, place: str, *options: Argument, added: Sequence[str] = ()) -> Path:
    """Make a volume with keyslots here and there, for both types of header; return where its header is."""
    payload, header = folder / "payload.img", folder / "header.img"
    where: list[Argument] = ["--header", header] if place == "detached" else []
    create(
        *options, *CHEAP, *where, "--key-file", key_file(folder, "first"), "--size", "18M", "--no-wipe", payload
    )  # fmt: skip
    header = header if place == "detached" else payload
    for secret, slot in SECRETS.items():
        if slot:
            add(header, folder, secret, slot, *CHEAP, *added)
    return header


def add(header: Path, folder: Path, secret: str, slot: int, *options: str) -> None:
    cryptsetup(
        "luksAddKey", *(options or CHEAP), "--key-file", key_file(folder, "first"), "--new-key-slot", f"{slot}",
        header, key_file(folder, secret),
    )  # fmt: skip


def areas(header: Path, metadata: dict[str, Any]) -> dict[str, bytes]:
    """Return the material in each keyslot's area, by the metadata of the LUKS2 header."""
    data, found = header.read_bytes(), {}
    for number, slot in metadata["keyslots"].items():
        start = int(slot["area"]["offset"])
        found[number] = data[start : start + slot["key_size"] * 4000]
    return found


def without_places(text: str) -> str:
    """Return what `luksDump` says of a LUKS1 header but for where its areas are."""
    return re.sub(r"(Key material offset:\s*)\d+", r"\1", text)


def same_as_luks1(header: Path, twin: Path) -> dict[str, bytes]:
    """Compare two LUKS1 headers, but for where their areas are; return the material of those in use."""
    ours, theirs, found = header.read_bytes(), twin.read_bytes(), {}
    assert ours[:208] == theirs[:208]
    size = int.from_bytes(ours[108:112], "big") * 4000
    for number in range(8):
        entry = 208 + number * 48
        assert ours[entry : entry + 40] == theirs[entry : entry + 40]
        assert ours[entry + 44 : entry + 48] == theirs[entry + 44 : entry + 48]
        if ours[entry : entry + 4] == b"\x00\xac\x71\xf3":
            material = [
                data[start : start + size]
                for data in (ours, theirs)
                for start in [int.from_bytes(data[entry + 40 : entry + 44], "big") * 512]
            ]
            assert material[0] == material[1]
            found[f"{number}"] = material[0]
    return found


@BY_PLACE
def test_luks1_to_luks2(cipher: list[str], place: str, tmp_path: Path) -> None:
    """The LUKS2 header has the members that cryptsetup's has, its areas the same bytes, and each key opens its own."""
    header, twin = make(tmp_path, place, "--type", "luks1", *cipher), tmp_path / "twin"
    shutil.copyfile(header, twin)
    run("header", "convert", "--type", "luks2", header)
    cryptsetup("convert", "--type", "luks2", twin)

    ours, theirs = json_metadata(header), json_metadata(twin)
    assert areas(header, ours) == areas(twin, theirs)
    if place == "detached":  # a new file has more room for keyslots than the old one had
        assert int(ours["config"].pop("keyslots_size")) >= int(theirs["config"].pop("keyslots_size"))
    assert ours == theirs
    assert cryptsetup("luksUUID", header) == cryptsetup("luksUUID", twin)
    assert_opens(header, tmp_path, SECRETS)
    # and it is a header to add keys to
    add(header, tmp_path, "new", 1)
    run("key", "remove", "--key-slot", "0", header)
    assert_opens(header, tmp_path, {**SECRETS, "first": None, "new": 1})


@BY_PLACE
def test_luks2_to_luks1(cipher: list[str], place: str, tmp_path: Path) -> None:
    """
    All but the places of the areas is cryptsetup's to the byte, and so are the areas in use.

    We put each area where a new header has it; cryptsetup, which works in place, where it lay in the LUKS2 header.
    """
    hash_ = cipher[5] if len(cipher) > 4 else "sha256"
    header = make(tmp_path, place, "--type", "luks2", "--sector-size", "512", *cipher, added=["--hash", hash_])
    twin = tmp_path / "twin"
    shutil.copyfile(header, twin)
    before = areas(header, json_metadata(header))
    run("header", "convert", "--type", "luks1", header)
    cryptsetup("convert", "--type", "luks1", twin)

    assert without_places(dump(header)) == without_places(dump(twin))
    assert same_as_luks1(header, twin) == before
    assert_opens(header, tmp_path, SECRETS)


def test_there_and_back(tmp_path: Path) -> None:
    """A header that we made LUKS2 becomes LUKS1 again by cryptsetup, and the other way round."""
    header = make(tmp_path, "detached", "--type", "luks1")
    before = dump(header)
    run("header", "convert", "--type", "luks2", header)
    cryptsetup("convert", "--type", "luks1", header)
    assert dump(header) == before
    cryptsetup("convert", "--type", "luks2", header)
    run("header", "convert", "--type", "luks1", header)
    assert dump(header) == before
    assert_opens(header, tmp_path, SECRETS)


REFUSED: dict[str, list[str]] = {
    "argon2": [*COSTS["argon2id"]],
    "other-hash": [*CHEAP, "--hash", "sha512"],
    "other-cipher": [*CHEAP, "--keyslot-cipher", "aes-cbc-essiv:sha256", "--keyslot-key-size", "256"],
}
WAYS: dict[str, list[str]] = {
    "token": ["token", "add", "--key-description", "x"],
    "unbound": ["luksAddKey", "--unbound", "--key-size", "256", *CHEAP],
    "ninth": ["luksAddKey", "--new-key-slot", "8", *CHEAP],
}


def assert_both_refuse(header: Path, type_: str) -> None:
    """Neither program converts the header, and both leave it as it is."""
    before = header.read_bytes()
    assert try_cryptsetup("convert", "--type", type_, header).returncode != 0
    done = lukshdrfs("header", "convert", "--type", type_, header)
    assert done.returncode not in (0, 2), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert header.read_bytes() == before


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED.keys())
def test_keyslots_that_luks1_does_not_have(options: list[str], tmp_path: Path) -> None:
    """A keyslot that LUKS1 cannot say is refused by both programs."""
    header = make(tmp_path, "detached", "--type", "luks2", "--sector-size", "512")
    add(header, tmp_path, "odd", 1, *options)
    assert_both_refuse(header, "luks1")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_members_that_luks1_does_not_have(way: list[str], tmp_path: Path) -> None:
    """Tokens, keyslots of other keys, and more keyslots than eight are refused by both programs."""
    header = make(tmp_path, "detached", "--type", "luks2", "--sector-size", "512")
    key = key_file(tmp_path, "odd")
    if way[0] == "token":
        cryptsetup(*way, header)
    elif "--unbound" in way:
        cryptsetup(*way, header, key)
    else:
        cryptsetup(*way, "--key-file", key_file(tmp_path, "first"), header, key)
    assert_both_refuse(header, "luks1")


@pytest.mark.parametrize("type_", ["luks1", "luks2"])
def test_header_of_that_type_already(type_: str, tmp_path: Path) -> None:
    """There is nothing to convert in a header that is of the type already."""
    header = make(tmp_path, "detached", "--type", type_)
    assert_both_refuse(header, type_)


def test_large_sectors(tmp_path: Path) -> None:
    """LUKS1 has sectors of 512 bytes only."""
    assert_both_refuse(make(tmp_path, "detached", "--type", "luks2", "--sector-size", "4096"), "luks1")


STRICTER = {"luks2-label-flags"}
"""Where we refuse and cryptsetup does not: a label, which it drops."""


def cryptsetup_has_no_way(header: Path) -> bool:
    """Tell whether cryptsetup, which converts in place and asks the kernel for ciphers, cannot where we can."""
    text = dump(header)
    if not re.search(r"cipher:\s*aes-|Cipher name:\s*aes$", text, re.MULTILINE):
        return True
    room, bits = (re.findall(rf"{name}:\s*(\d+)", text) for name in ("Keyslots area", "Key"))
    return bool(room) and int(room[0]) < 8 * -(-int(bits[0]) // 8 * 4000 // 4096) * 4096


GOLDEN = sorted(
    name
    for name, golden in golden_volumes().items()
    if golden.header_file and golden.expect == "open" and not re.search("s1024|s4096|argon2.*-m[0-9]", name)
)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_headers(name: str, tmp_path: Path) -> None:
    """Of every header that there is in the tests, both programs make the same, or both refuse."""
    golden = golden_volumes()[name]
    assert golden.header_file is not None
    ours, theirs, other = (tmp_path / file for file in ("ours", "theirs", "other"))
    original = unpacked(golden.header_file)
    for path in (ours, theirs, other):
        path.write_bytes(original)
    no_way = cryptsetup_has_no_way(other)  # which restores a bad copy, in passing
    type_ = "luks2" if original[6:8] == b"\0\1" else "luks1"
    theirs_done = try_cryptsetup("convert", "--type", type_, theirs)
    done = lukshdrfs("header", "convert", "--type", type_, ours)
    if done.returncode:
        assert theirs_done.returncode != 0 or name in STRICTER, done.stderr
        assert ours.read_bytes() == original
        return
    assert f"Version:       \t{type_[-1]}\n" in dump(ours)
    if theirs_done.returncode:
        assert no_way
        key = next(key for key in golden.keys if key.opens)
        assert opened_by_us(ours, key.path) is not None
    elif type_ == "luks1":
        assert same_as_luks1(ours, theirs)
    else:
        mine, its = json_metadata(ours), json_metadata(theirs)
        assert areas(ours, mine) == areas(theirs, its)
        for metadata in (mine, its):
            del metadata["config"]["keyslots_size"]
        assert mine == its
