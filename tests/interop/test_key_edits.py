"""Keyslots that one program adds, changes and removes in a header that another one made, and what is left of them."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import qemu
from support.created import COSTS, SMALL, create
from support.cryptsetup import (
    LUKS1_XTS,
    XTS_4096,
    Format,
    LuksFiles,
    cryptsetup,
    dump,
    json_metadata,
    keyslot_of,
    make_header,
    volume_key,
)
from support.keyslots import Secret, assert_opens, key_file, opened_by_us, run
from support.luks2_edit import edit, metadata
from support.tools import program

pytestmark = pytest.mark.needs("cryptsetup")

MIB = 1 << 20
CHEAP = COSTS["pbkdf2"]
FIRST = "first"
BY_TYPE = pytest.mark.parametrize("layout", [LUKS1_XTS, XTS_4096], ids=lambda layout: str(layout.type))


def files_in(folder: Path) -> LuksFiles:
    """Return the names of a volume's files, with an empty payload and the first secret."""
    files = LuksFiles(folder / "payload.img", folder / "header.img", key_file(folder, FIRST))
    files.payload.write_bytes(bytes(MIB))
    return files


def made_by_us(folder: Path, layout: Format) -> LuksFiles:
    files = files_in(folder)
    create(
        "--type", layout.type, "--cipher", layout.cipher, "--key-size", str(layout.key_bits), *CHEAP,
        *(SMALL if layout.type == "luks2" else []),
        "--header", files.header, "--key-file", files.key_file, files.payload,
    )  # fmt: skip
    return files


def made_by_cryptsetup(folder: Path, layout: Format) -> LuksFiles:
    files = files_in(folder)
    make_header(files, layout)
    return files


class Ours:
    """Edits by us, each with the secrets by their names."""

    def __init__(self, header: Path, folder: Path) -> None:
        self.header, self._folder = header, folder

    def _key(self, secret: Secret) -> Path:
        return key_file(self._folder, secret)

    def add(self, old: Secret, new: Secret, slot: int) -> None:
        run(
            "key", "add", *CHEAP, "--key-file", self._key(old), "--new-key-file", self._key(new),
            "--new-key-slot", f"{slot}", self.header,
        )  # fmt: skip

    def change(self, old: Secret, new: Secret, slot: int) -> None:
        run(
            "key", "change", *CHEAP, "--key-file", self._key(old), "--key-slot", f"{slot}",
            "--new-key-file", self._key(new), self.header,
        )  # fmt: skip

    def kill(self, slot: int, other: Secret) -> None:
        run("key", "remove", "--key-slot", f"{slot}", self.header)

    def remove(self, secret: Secret) -> None:
        run("key", "remove", "--key-file", self._key(secret), self.header)


class Theirs(Ours):
    """The same by cryptsetup."""

    def add(self, old: Secret, new: Secret, slot: int) -> None:
        cryptsetup(
            "luksAddKey", *CHEAP, "--key-file", self._key(old), "--new-key-slot", f"{slot}", self.header,
            self._key(new),
        )  # fmt: skip

    def change(self, old: Secret, new: Secret, slot: int) -> None:
        cryptsetup(
            "luksChangeKey", *CHEAP, "--key-file", self._key(old), "--key-slot", f"{slot}", self.header, self._key(new)
        )  # fmt: skip

    def kill(self, slot: int, other: Secret) -> None:
        cryptsetup("luksKillSlot", "--key-file", self._key(other), self.header, f"{slot}")

    def remove(self, secret: Secret) -> None:
        cryptsetup("luksRemoveKey", self.header, self._key(secret))


Make = Callable[[Path, Format], LuksFiles]


@pytest.mark.parametrize("editor", [Ours, Theirs], ids=["we-edit", "cryptsetup-edits"])
@pytest.mark.parametrize("make", [made_by_us, made_by_cryptsetup], ids=["ours", "theirs"])
@BY_TYPE
def test_edits_of_either_program(layout: Format, make: Make, editor: type[Ours], tmp_path: Path) -> None:
    """After each step, both programs say the same of every secret: which keyslot it opens, or none."""
    header = make(tmp_path, layout).header
    by = editor(header, tmp_path)
    opens: dict[Secret, int | None] = {FIRST: 0, "second": None, "third": None}
    by.add(FIRST, "second", 3)
    opens["second"] = 3
    assert_opens(header, tmp_path, opens)
    by.change("second", "third", 3)
    opens |= {"second": None, "third": 3}
    assert_opens(header, tmp_path, opens)
    by.add("third", "second", 1)
    opens["second"] = 1
    assert_opens(header, tmp_path, opens)
    by.kill(0, "third")
    opens[FIRST] = None
    assert_opens(header, tmp_path, opens)
    by.remove("third")
    opens["third"] = None
    assert_opens(header, tmp_path, opens)


@BY_TYPE
@pytest.mark.parametrize("seed", [1, 2])
def test_edits_of_both_programs_in_turn(seed: int, layout: Format, tmp_path: Path) -> None:
    """The programs take turns in one header, at random; after each step both say the same of every secret."""
    rng = random.Random(seed)
    header = made_by_cryptsetup(tmp_path, layout).header
    programs = [Ours(header, tmp_path), Theirs(header, tmp_path)]
    names = ("second", "third", "fourth", "fifth")
    opens: dict[Secret, int | None] = {FIRST: 0, **dict.fromkeys(names)}
    for by in itertools.islice(itertools.cycle(programs), 10):
        used = {secret: slot for secret, slot in opens.items() if slot is not None}
        free = [secret for secret, slot in opens.items() if slot is None]
        room = 8 if layout.type == "luks1" else 4  # areas of 1 MiB
        action = rng.choice(
            [*(["add"] * 3 if free and len(used) < room - 1 else []), *(["change"] if free else []),
             *(["kill", "remove"] if len(used) > 1 else [])]
        )  # fmt: skip
        old = rng.choice(list(used))
        if action == "add":
            new, slot = rng.choice(free), rng.choice([n for n in range(8) if n not in used.values()])
            by.add(old, new, slot)
            opens[new] = slot
        elif action == "change":
            new = rng.choice(free)
            by.change(old, new, used[old])
            opens |= {old: None, new: used[old]}
        elif action == "kill":
            by.kill(used[old], next(secret for secret in used if secret != old))
            opens[old] = None
        else:
            by.remove(old)
            opens[old] = None
        assert_opens(header, tmp_path, opens)


def test_all_eight_luks1_keyslots(tmp_path: Path) -> None:
    """
    Each of LUKS1's keyslots opens with its own key, also the entry of keyslot 6, which lies in two sectors.

    When they are all in use, there is no room for one more; each goes without the others' taking notice.
    """
    files = made_by_cryptsetup(tmp_path, LUKS1_XTS)
    by = Ours(files.header, tmp_path)
    opens: dict[Secret, int | None] = {FIRST: 0, **{f"key{number}": number for number in range(1, 8)}}
    for number in (6, 7, 1, 3, 2, 5, 4):
        by.add(FIRST, f"key{number}", number)
    assert_opens(files.header, tmp_path, opens)
    with pytest.raises(AssertionError, match="keyslots are in use"):
        run(
            "key", "add", *CHEAP, "--key-file", files.key_file, "--new-key-file", key_file(tmp_path, "ninth"),
            files.header,
        )  # fmt: skip
    assert dump(files.header).count("ENABLED") == 8

    by.remove("key3")
    by.change("key6", "other6", 6)
    opens |= {"key3": None, "key6": None, "other6": 6}
    assert_opens(files.header, tmp_path, opens)
    for number in (7, 0, 6, 2, 4):
        by.kill(number, "key1")
        opens |= {secret: None for secret, slot in opens.items() if slot == number}
    assert_opens(files.header, tmp_path, opens)


@BY_TYPE
def test_ways_to_name_secrets(layout: Format, tmp_path: Path) -> None:
    """Parts of files, lines and the volume key itself make the keyslots that cryptsetup opens with the same bytes."""
    files = made_by_cryptsetup(tmp_path, layout)
    key = tmp_path / "volume-key"
    key.write_bytes(volume_key(files))
    large = tmp_path / "large"
    large.write_bytes(b"before|the part|behind\nsecond line\n")

    run(
        "key", "add", *CHEAP, "--volume-key-file", key, "--new-key-file", large, "--new-keyfile-offset", "7",
        "--new-keyfile-size", "8", files.header,
    )  # fmt: skip
    part = ("--keyfile-offset", "7", "--keyfile-size", "8")
    assert keyslot_of(files.header, large, *part) == opened_by_us(files.header, large, *part) == 1
    assert keyslot_of(files.header, key_file(tmp_path, "the part")) == 1
    run(
        "key", "add", *CHEAP, "--key-file", large, *part, "--new-passphrase-file", large, "--new-key-slot", "2",
        files.header,
    )  # fmt: skip
    assert keyslot_of(files.header, key_file(tmp_path, "before|the part|behind")) == 2
    cryptsetup("open", "--test-passphrase", "--key-slot", "2", files.header, stdin=large.read_bytes())
    run("key", "change", *CHEAP, "--passphrase-file", large, "--new-key-file", key_file(tmp_path, "last"), files.header)
    assert_opens(files.header, tmp_path, {"last": 2, "before|the part|behind": None, FIRST: 0, "the part": 1})
    run(
        "key", "change", *CHEAP, "--volume-key-file", key, "--key-slot", "0",
        "--new-key-file", key_file(tmp_path, "by the key"), files.header,
    )  # fmt: skip
    assert_opens(files.header, tmp_path, {"last": 2, FIRST: None, "by the key": 0, "the part": 1})
    assert volume_key(LuksFiles(files.payload, files.header, key_file(tmp_path, "last"))) == key.read_bytes()


def test_priorities(tmp_path: Path) -> None:
    """Priorities that either program sets are the other's too: the preferred are tried first, the ignored never."""
    files = made_by_cryptsetup(tmp_path, XTS_4096)
    header, key = files.header, files.key_file
    run(
        "key", "add", *CHEAP, "--key-file", key, "--new-key-file", key, "--new-key-slot", "2", "--priority", "prefer",
        header,
    )  # fmt: skip
    run("key", "add", *CHEAP, "--key-file", key, "--new-key-file", key, "--new-key-slot", "1", header)

    def shown() -> list[int | None]:
        metadata = json_metadata(header)
        return [metadata["keyslots"][number].get("priority") for number in sorted(metadata["keyslots"])]

    assert shown() == [None, None, 2]
    assert keyslot_of(header, key) == opened_by_us(header, key) == 2
    cryptsetup("config", "--priority", "ignore", "--key-slot", "2", header)
    run("key", "change", "--key-slot", "1", "--priority", "prefer", header)
    assert shown() == [None, 2, 0]
    assert keyslot_of(header, key) == opened_by_us(header, key) == 1
    run("key", "change", "--key-slot", "0", "--priority", "ignore", header)
    run("key", "remove", "--key-slot", "1", header)
    assert keyslot_of(header, key) is None
    assert opened_by_us(header, key) is None
    assert keyslot_of(header, key, "--key-slot", "2") == opened_by_us(header, key, "--key-slot", "2") == 2
    # a keyslot keeps its priority when its key changes, in both programs
    run(
        "key", "change", *CHEAP, "--key-slot", "2", "--key-file", key, "--new-key-file", key_file(tmp_path, "new"),
        header,
    )  # fmt: skip
    assert shown() == [0, 0]
    cryptsetup("config", "--priority", "normal", "--key-slot", "0", header)
    run("key", "change", "--key-slot", "2", "--priority", "normal", header)
    assert shown() == [None, None]
    assert_opens(header, tmp_path, {FIRST: 0, "new": 2})


@pytest.mark.parametrize("kdf", list(COSTS))
def test_costs_and_ciphers_of_new_keyslots(kdf: str, tmp_path: Path) -> None:
    """KDF, hash and area cipher of a keyslot are what was asked for, and cryptsetup opens it."""
    files = made_by_cryptsetup(tmp_path, XTS_4096)
    run(
        "key", "add", *COSTS[kdf], "--hash", "sha512", "--keyslot-cipher", "aes-cbc-essiv:sha256",
        "--keyslot-key-size", "128", "--key-file", files.key_file, "--new-key-file", key_file(tmp_path, "new"),
        files.header,
    )  # fmt: skip
    slot = json_metadata(files.header)["keyslots"]["1"]
    asked = dict(zip(COSTS[kdf][::2], COSTS[kdf][1::2], strict=True))
    assert slot["kdf"]["type"] == kdf
    assert str(slot["kdf"].get("iterations", slot["kdf"].get("time"))) == asked["--pbkdf-force-iterations"]
    if kdf == "pbkdf2":
        assert slot["kdf"]["hash"] == "sha512"
    else:
        cost = str(slot["kdf"]["memory"]), str(slot["kdf"]["cpus"])
        assert cost == (asked["--pbkdf-memory"], asked["--pbkdf-parallel"])
    assert slot["af"]["hash"] == "sha512"
    assert (slot["area"]["encryption"], slot["area"]["key_size"]) == ("aes-cbc-essiv:sha256", 16)
    assert_opens(files.header, tmp_path, {FIRST: 0, "new": 1})


# --- QEMU ------------------------------------------------------------------------------------------------------


def qemu_opens(image: Path, key: Path) -> bool:
    """Tell whether QEMU opens an image with a key file."""
    done = subprocess.run(
        [
            program("qemu-io"), "-r", *qemu.luks_secret(key), "--image-opts", qemu.attached(image),
            "-c", "read 0 512",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or "Invalid password" in done.stderr, done.stderr
    return done.returncode == 0


def amend(image: Path, key: Path, what: str, new: Path | None = None) -> None:
    """Have QEMU change the keyslots of an image."""
    more = [] if new is None else ["--object", f"secret,id=new,file={new}"]
    qemu.run_timed(
        program("qemu-img"), "amend", *qemu.luks_secret(key), *more, "-o", what, "--image-opts", qemu.attached(image)
    )


@pytest.mark.needs("qemu-img", "qemu-io")
def test_qemu_and_we_take_turns(tmp_path: Path) -> None:
    """QEMU adds and erases keyslots in our attached LUKS1 volume, we in what QEMU made of it; all three agree."""
    image, first = tmp_path / "payload.img", key_file(tmp_path, FIRST)
    create("--type", "luks1", *CHEAP, "--key-file", first, "--size", "3M", "--no-wipe", image)

    def check(expected: dict[Secret, int | None]) -> None:
        assert_opens(image, tmp_path, expected)
        for secret, slot in expected.items():
            assert qemu_opens(image, key_file(tmp_path, secret)) == (slot is not None), secret

    opens: dict[Secret, int | None] = {FIRST: 0, "second": None, "third": None}
    amend(image, first, "state=active,new-secret=new,keyslot=6,iter-time=10", key_file(tmp_path, "second"))
    check(opens | {"second": 6})
    Ours(image, tmp_path).add("second", "third", 7)
    Ours(image, tmp_path).change("second", "fourth", 6)
    opens |= {"second": None, "third": 7, "fourth": 6}
    check(opens)
    amend(image, first, "state=inactive,keyslot=0")
    check(opens | {FIRST: None})
    Ours(image, tmp_path).remove("third")
    check(opens | {FIRST: None, "third": None})
    amend(
        image, key_file(tmp_path, "fourth"), "state=active,new-secret=new,keyslot=7,iter-time=10",
        key_file(tmp_path, "third"),
    )  # fmt: skip
    check(opens | {FIRST: None})


@pytest.mark.needs("qemu-img", "qemu-io")
def test_all_keyslots_of_qemus_image(tmp_path: Path) -> None:
    """We fill all the keyslots of an image that QEMU made, at the places that QEMU gave them, and QEMU opens each."""
    image, first = tmp_path / "payload.img", key_file(tmp_path, FIRST)
    qemu.run_timed(
        program("qemu-img"), "create", "-q", "-f", "luks", *qemu.luks_secret(first),
        "-o", "key-secret=s,iter-time=10", image, "1M",
    )  # fmt: skip
    by = Ours(image, tmp_path)
    opens: dict[Secret, int | None] = {FIRST: 0}
    for number in range(1, 8):
        by.add(FIRST, f"key{number}", number)
        opens[f"key{number}"] = number
    assert_opens(image, tmp_path, opens)
    assert all(qemu_opens(image, key_file(tmp_path, secret)) for secret in opens)
    by.kill(0, "key1")
    assert not qemu_opens(image, key_file(tmp_path, FIRST))


# --- what else is in the header ------------------------------------------------------------------------------------

TOKEN = (
    r'{"type":"my/own","keyslots":["0"],"text":"b\u00fcro é \/ a\tb \u0001 \"\\","large":12345678901234567,'
    r'"float":1.50,"exponent":1e3,"tiny":1E-400,"object":{},"array":[[],{}],"null":null,"true":true}'
)


def raw_metadata(header: Path) -> str:
    """Return the JSON text of the first copy."""
    data = header.read_bytes()
    return data[4096 : int.from_bytes(data[8:16], "big")].rstrip(b"\0").decode()


@pytest.fixture
def rich(tmp_path: Path) -> LuksFiles:
    """A header with tokens, flags, a label, a keyslot of another key, and members that no program knows."""
    files = made_by_cryptsetup(tmp_path, XTS_4096)
    header = files.header
    cryptsetup("config", "--label", "büro", "--subsystem", "sub", header)
    cryptsetup(
        "luksAddKey", "--unbound", "--key-size", "256", "--key-slot", "5", *CHEAP, header, key_file(tmp_path, "unbound")
    )
    cryptsetup("token", "add", "--key-description", "some:key", "--token-id", "3", "--key-slot", "0", header)

    def change(document: dict[str, Any]) -> None:
        document["config"]["flags"] = ["allow-discards", "no-read-workqueue"]
        document["config"]["unknown"] = {"x": [1, 2.5, "y"]}
        document["segments"]["0"]["later"] = {"nested": {"deeper": [True, None]}}
        document["keyslots"]["5"]["note"] = "of another program"
        document["keyslots"]["0"]["note"] = {"a": 1}
        document["digests"]["0"]["note"] = "ü"
        document["future"] = [{"a": "b"}]

    edit(header, change)
    cryptsetup("token", "import", "--token-id", "7", header, stdin=TOKEN.encode())  # all of it is written by cryptsetup
    return files


def edits_of(files: LuksFiles, folder: Path) -> Iterator[Callable[[], None]]:
    """Yield what is done to a header; at the end, keyslot 0 has another key and there are no others of that key."""
    by = Ours(files.header, folder)
    yield lambda: by.add(FIRST, "second", 2)
    yield lambda: run("key", "change", "--key-slot", "2", "--priority", "ignore", files.header)
    yield lambda: by.change(FIRST, "third", 0)
    yield lambda: by.kill(2, "third")
    yield lambda: run("header", "set", "--label", "other", files.header)


def test_all_else_survives_our_edits(rich: LuksFiles, tmp_path: Path) -> None:
    """Tokens, flags, names, other keys' keyslots and unknown members are, character by character, what they were."""
    header = rich.header
    before, shown_before = raw_metadata(header), json_metadata(header)
    assert '"text":"büro é / a\\tb \\u0001 \\"\\\\"' in before.replace("\\/", "/")
    kept = {
        "tokens": "segments", "segments": "digests", "config": "future",
    }  # fmt: skip

    def text_of(document: str, section: str, following: str) -> str:
        start = document.index(f'"{section}":{{')
        return document[start : document.index(f'"{following}":', start)].replace("\\/", "/")

    expected = {section: text_of(before, section, following) for section, following in kept.items()}
    for step in edits_of(rich, tmp_path):
        step()
        after, shown = raw_metadata(header), json_metadata(header)
        assert {section: text_of(after, section, following) for section, following in kept.items()} == expected
        assert after[after.index('"future":') :] == before[before.index('"future":') :]
        for name in ("note", "type", "key_size"):
            assert shown["keyslots"]["0"][name] == shown_before["keyslots"]["0"][name]
        assert shown["keyslots"]["5"] == shown_before["keyslots"]["5"]
        assert {**shown["digests"]["0"], "keyslots": []} == {**shown_before["digests"]["0"], "keyslots": []}
        assert shown["digests"]["1"] == shown_before["digests"]["1"]
        assert keyslot_of(header, key_file(tmp_path, "unbound"), "--unbound", "--key-slot", "5") == 5
    assert_opens(header, tmp_path, {FIRST: None, "second": None, "third": 0, "unbound": None})
    assert json_metadata(header)["keyslots"].keys() == {"0", "5"}


def test_removed_keyslots_leave_tokens_and_digests_as_cryptsetup_leaves_them(rich: LuksFiles, tmp_path: Path) -> None:
    """Removing a keyslot that tokens name, and the last one of a key, changes the same members in both programs."""
    header, twin = rich.header, tmp_path / "twin.img"
    run(
        "key", "add", *CHEAP, "--key-file", rich.key_file, "--new-key-file", key_file(tmp_path, "second"),
        "--new-key-slot", "1", header,
    )  # fmt: skip
    for number in ("0", "5"):
        shutil.copyfile(header, twin)
        run("key", "remove", "--key-slot", number, header)
        cryptsetup("luksKillSlot", "--key-file", key_file(tmp_path, "second"), twin, number)
        assert json_metadata(header) == json_metadata(twin)
        assert header.read_bytes()[8:24] == twin.read_bytes()[8:24]  # size and epoch


def test_strings_that_are_no_text(tmp_path: Path) -> None:
    """Strings with half a surrogate pair, or with bytes that are no UTF-8, do not stand in the way of an edit."""
    files = made_by_cryptsetup(tmp_path, XTS_4096)
    edit(files.header, lambda document: document["tokens"].update({"0": {"type": "x", "keyslots": [], "y": "\ud800"}}))
    assert rb"\ud800" in files.header.read_bytes()
    assert json_metadata(files.header)["tokens"]["0"]["y"] == "\ufffd"  # so cryptsetup reads it
    Ours(files.header, tmp_path).add(FIRST, "second", 1)
    assert_opens(files.header, tmp_path, {FIRST: 0, "second": 1})
    assert json_metadata(files.header)["tokens"]["0"]["y"] == "\ufffd"


# --- what is left of key material ---------------------------------------------------------------------------------


def areas(header: Path, layout: Format) -> dict[int, bytes]:
    """Return the bytes of each keyslot's area, by cryptsetup's word of where they are."""
    data, found = header.read_bytes(), {}
    size = layout.key_bits // 8 * 4000
    if layout.type == "luks2":
        slots = metadata(data)["keyslots"]
        places = {int(number): int(slot["area"]["offset"]) for number, slot in slots.items()}
    else:
        places = {}
        for block in dump(header).split("Key Slot ")[1:]:
            if "ENABLED" in block:
                places[int(block[0])] = int(block.split("Key material offset:")[1].split()[0]) * 512
    for number, offset in places.items():
        found[number] = data[offset : offset + size]
    return found


def remains(material: bytes, data: bytes) -> int:
    """Return how many of the material's 512-byte sectors are still somewhere in the data."""
    sectors = {data[at : at + 512] for at in range(0, len(data), 512)}
    return sum(material[at : at + 512] in sectors for at in range(0, len(material) - 511, 512))


@pytest.mark.parametrize("make", [made_by_us, made_by_cryptsetup], ids=["ours", "theirs"])
@BY_TYPE
def test_removed_key_material_is_overwritten(layout: Format, make: Make, tmp_path: Path) -> None:
    """Of the material of a keyslot that is removed or changed no sector is left, and other areas are untouched."""
    files = make(tmp_path, layout)
    header, by = files.header, Ours(files.header, tmp_path)
    by.add(FIRST, "second", 1)
    before = areas(header, layout)
    assert all(remains(material, header.read_bytes()) == len(material) // 512 for material in before.values())

    by.change("second", "third", 1)
    assert remains(before[1], header.read_bytes()) == 0
    changed = areas(header, layout)
    assert changed[0] == before[0]
    by.kill(0, "third")
    assert remains(before[0], header.read_bytes()) == 0
    assert areas(header, layout) == {1: changed[1]}
    assert_opens(header, tmp_path, {FIRST: None, "second": None, "third": 1})


def test_hard_links_and_mode_stay(tmp_path: Path) -> None:
    """A header file stays the same file, with its mode and its other names, through the edits of keys."""
    files = made_by_cryptsetup(tmp_path, LUKS1_XTS)
    link = tmp_path / "link"
    os.link(files.header, link)
    files.header.chmod(0o640)
    Ours(files.header, tmp_path).add(FIRST, "second", 1)
    assert link.samefile(files.header)
    assert link.stat().st_mode & 0o777 == 0o640
    assert keyslot_of(link, key_file(tmp_path, "second")) == 1
