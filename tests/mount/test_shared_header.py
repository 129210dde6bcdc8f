"""One header for several payloads, each with a key of its own; and several payloads on one device."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles, cryptsetup, decrypted, volume_key
from support.dmcrypt import run_in_guest
from support.mounts import Mounted, is_mounted, lukshdrfs
from support.tools import program
from support.volumes import MIB

pytestmark = pytest.mark.needs("fuse", "cryptsetup")

CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
NAMES = ["first", "disk2", "disk3"]
EIGHT = ["first", *(f"disk{number}" for number in range(2, 9))]


def done(*arguments: str | Path) -> str:
    """Run the program, which must succeed."""
    result = lukshdrfs(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(*arguments: str | Path) -> tuple[int, str]:
    """Run the program, which must fail in one line."""
    result = lukshdrfs(*arguments)
    assert result.returncode != 0
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.returncode, result.stderr


@pytest.fixture
def shared(tmp_path: Path) -> LuksFiles:
    """Return the first volume of a header that three payloads share."""
    return make_shared(tmp_path, NAMES)


def make_shared(tmp_path: Path, names: list[str]) -> LuksFiles:
    """Make a header and the payloads that share it; return the first volume."""
    files = LuksFiles(tmp_path / "first.img", tmp_path / "header.img", tmp_path / "key")
    files.key_file.write_bytes(b"one for all")
    done("create", "--header", files.header, *CHEAP, "--size", "1M", "--key-file", files.key_file, files.payload)
    for name in names[1:]:
        done(
            "create", "--shared-header", files.header, *CHEAP, "--size", "1M", "--key-file", files.key_file,
            tmp_path / f"{name}.img",
        )  # fmt: skip
    return files


def mount(files: LuksFiles, name: str, key_file: Path | None = None) -> Mounted:
    """Mount one of the payloads, each at a place of its own."""
    place = files.header.with_name(f"at-{name}")
    place.mkdir(exist_ok=True)
    payload = files.header.with_name(f"{name}.img")
    return Mounted(payload, header=files.header, key_file=key_file or files.key_file, mountpoint=place)


def export(files: LuksFiles, name: str) -> LuksFiles:
    """Return a payload with a header of its own."""
    header = files.header.with_name(f"{name}.hdr")
    done("header", "export", files.header, header, "--payload-name", name)
    return LuksFiles(files.header.with_name(f"{name}.img"), header, files.key_file)


def test_a_further_payloads_keyslot_is_as_it_is_asked_for(shared: LuksFiles, tmp_path: Path) -> None:
    """`--keyslot-cipher` and `--keyslot-key-size` are for the keyslots that a further payload gets, too."""
    done(
        "create", "--shared-header", shared.header, *CHEAP, "--size", "1M", "--key-file", shared.key_file,
        "--keyslot-cipher", "aes-cbc-essiv:sha256", "--keyslot-key-size", "256", tmp_path / "other.img",
    )  # fmt: skip
    shown = json.loads(done("info", "--json", "--header", shared.header))
    assert [slot["area"]["encryption"] for slot in shown["keyslots"]].count("aes-cbc-essiv:sha256") == 1
    with mount(shared, "other") as opened:
        assert len(opened.image.read_bytes()) == MIB


def test_one_passphrase_and_eight_keys(tmp_path: Path) -> None:
    """Eight daemons serve from one header at once; the same plaintext is eight ciphertexts; cryptsetup reads each."""
    shared = make_shared(tmp_path, EIGHT)
    plain = random.Random(1).randbytes(MIB)
    with contextlib.ExitStack() as mounts:
        images = [mounts.enter_context(mount(shared, name)).image for name in EIGHT]
        for image in images:
            with image.open("r+b", buffering=0) as file:
                file.write(plain)
    blocks = [shared.header.with_name(f"{name}.img").read_bytes() for name in EIGHT]
    assert len({block[:4096] for block in blocks}) == len(EIGHT)
    assert len({hashlib.sha256(block).digest() for block in blocks}) == len(EIGHT)
    alone = [export(shared, name) for name in EIGHT]
    assert len({volume_key(files) for files in alone}) == len(EIGHT)
    for files in alone:
        assert decrypted(files) == plain


@pytest.mark.root
@pytest.mark.needs("dmcrypt-vm")
def test_dm_crypt_reads_each_exported_payload(tmp_path: Path) -> None:
    """The kernel reads what was written through the shared header, each payload by its exported one."""
    folder = tmp_path / "share"
    folder.mkdir()
    shared = make_shared(folder, EIGHT)
    expected = []
    for number, name in enumerate(EIGHT):
        plain = random.Random(number).randbytes(MIB)
        with mount(shared, name) as mounted, mounted.image.open("r+b", buffering=0) as file:
            file.write(plain)
        export(shared, name)
        (folder / f"at-{name}").rmdir()
        expected.append(hashlib.sha256(plain).hexdigest())
    said = run_in_guest(
        folder,
        f"""
        cd /share
        for name in {" ".join(EIGHT)}; do
            cryptsetup open --header $name.hdr --key-file key $name.img vol
            sha256sum </dev/mapper/vol
            cryptsetup close vol
        done
        """,
    )
    assert [line.split()[0] for line in said.splitlines() if line.strip()] == expected


def test_which_payload_is_never_guessed(shared: LuksFiles, tmp_path: Path) -> None:
    """A payload of no known name is refused unless it is named; so is a name that there is not, or is taken."""
    other = tmp_path / "other.img"
    (tmp_path / "disk3.img").rename(other)
    place = tmp_path / "mnt"
    place.mkdir()
    opening = ("--header", shared.header, "--key-file", shared.key_file)
    status, message = refused("mount", *opening, other, place)
    assert status == 1
    assert all(name in message for name in NAMES)
    refused("mount", *opening, "--payload-name", "disk9", other, place)
    assert not is_mounted(place)
    with Mounted(other, "-o", "payload-name=disk3", header=shared.header, key_file=shared.key_file) as mounted:
        assert mounted.image.stat().st_size == MIB
    create = ("create", "--shared-header", shared.header, *CHEAP, "--size", "1M", "--key-file", shared.key_file)
    refused(*create, "--payload-name", "disk2", tmp_path / "new.img")
    assert not (tmp_path / "new.img").exists()


def test_a_wrong_passphrase_shares_nothing(shared: LuksFiles, tmp_path: Path) -> None:
    """Who does not open the header cannot add a payload to it: nothing is made, nothing changes."""
    before = shared.header.read_bytes()
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"wrong")
    status, _ = refused(
        "create", "--shared-header", shared.header, *CHEAP, "--size", "1M", "--key-file", wrong, tmp_path / "new.img"
    )
    assert status == 2
    assert not (tmp_path / "new.img").exists()
    assert shared.header.read_bytes() == before


def test_keys_are_edited_for_all(shared: LuksFiles, tmp_path: Path) -> None:
    """Adding, changing and removing a passphrase does it for each payload; nothing becomes unopenable unasked."""
    second, third = tmp_path / "second", tmp_path / "third"
    second.write_bytes(b"second")
    third.write_bytes(b"third")

    def opens(key_file: Path) -> set[str]:
        found = set()
        for name in NAMES:
            header = tmp_path / "exported"
            done("header", "export", shared.header, header, "--payload-name", name)
            if lukshdrfs("key", "test", header, "--key-file", key_file).returncode == 0:
                found.add(name)
            header.unlink()
        return found

    done("key", "add", shared.header, "--key-file", shared.key_file, "--new-key-file", second, *CHEAP)
    assert opens(shared.key_file) == opens(second) == set(NAMES)
    done("key", "change", shared.header, "--key-file", second, "--new-key-file", third, *CHEAP)
    assert opens(third) == set(NAMES)
    assert opens(second) == set()
    done("key", "remove", shared.header, "--key-slot", "0")
    assert opens(shared.key_file) == set()
    assert opens(third) == set(NAMES)
    refused("key", "remove", shared.header, "--key-file", third)
    assert opens(third) == set(NAMES)
    done("header", "verify", shared.header)


def test_cryptsetup_takes_it_for_the_first_payloads(shared: LuksFiles, tmp_path: Path) -> None:
    """cryptsetup lists, opens and edits the header as any other; the other payloads stay."""
    second = tmp_path / "second"
    second.write_bytes(b"second")
    cryptsetup("open", "--test-passphrase", "--key-file", shared.key_file, shared.header)
    cryptsetup("luksAddKey", *CHEAP, "--key-file", shared.key_file, shared.header, second)
    cryptsetup("config", "--label", "still here", shared.header)
    cryptsetup("luksKillSlot", "--key-file", second, shared.header, "0")
    document = json.loads(done("info", "--json", shared.header))
    assert [payload["name"] for payload in document["payloads"]] == NAMES
    assert document["payloads"][0]["first"]
    with mount(shared, "first", second) as mounted:
        assert mounted.image.stat().st_size == MIB
    with mount(shared, "disk3") as mounted:
        assert mounted.image.stat().st_size == MIB


def test_several_payloads_on_one_file(tmp_path: Path) -> None:
    """Each window is a volume; all are mounted at once; nothing overlaps, and nobody else writes meanwhile."""
    disk, key = tmp_path / "disk.img", tmp_path / "key"
    key.write_bytes(b"windows")
    disk.write_bytes(random.Random(4).randbytes(8 * MIB))
    create = ("create", *CHEAP, "--key-file", key, "--luks2-keyslots-size", "512K")
    for number in range(3):
        offset = str((1 + 2 * number) * MIB)
        done(*create, "--header", tmp_path / f"header{number}", "--offset", offset, "--size", "2M", disk)
    before = disk.read_bytes()
    with contextlib.ExitStack() as mounts:
        for number in range(3):
            place = tmp_path / f"at{number}"
            place.mkdir()
            mounted = mounts.enter_context(
                Mounted(disk, header=tmp_path / f"header{number}", key_file=key, mountpoint=place)
            )
            assert mounted.image.stat().st_size == 2 * MIB
            with mounted.image.open("r+b", buffering=0) as file:
                file.write(b"%d" % number * (2 * MIB))
        overlapping = ("create", *CHEAP, "--key-file", key, "--luks2-keyslots-size", "512K", "--offset", "2M")
        assert refused(*overlapping, "--header", tmp_path / "header4", "--size", "1M", disk)[0] == 5
        whole = tmp_path / "whole"
        done("create", "--header", whole, *CHEAP, "--size", "1M", "--key-file", key, tmp_path / "x.img")
        place = tmp_path / "mnt"
        place.mkdir()
        assert refused("mount", "--header", whole, "--key-file", key, disk, place)[0] == 5
        write = subprocess.run(
            [program("qemu-io"), "-f", "raw", "-c", "write 0 512", disk], capture_output=True, check=False
        )
        assert write.returncode != 0
    after = disk.read_bytes()
    assert after[:MIB] == before[:MIB]
    assert after[7 * MIB :] == before[7 * MIB :]
    for number in range(3):
        with Mounted(disk, header=tmp_path / f"header{number}", key_file=key) as mounted:
            assert mounted.image.read_bytes() == b"%d" % number * (2 * MIB)


def test_a_window_keeps_the_payloads_size(tmp_path: Path) -> None:
    """`create` on an existing payload keeps its size to the byte, odd or not, and touches nothing but the window."""
    disk, key = tmp_path / "disk.img", tmp_path / "key"
    key.write_bytes(b"windows")
    content = random.Random(5).randbytes(3 * MIB + 777)
    disk.write_bytes(content)
    window = ("--offset", "1M", "--size", "1M", "--luks2-keyslots-size", "512K")
    done("create", *CHEAP, "--key-file", key, "--header", tmp_path / "header", *window, "--wipe", disk)
    found = disk.read_bytes()
    assert len(found) == len(content)
    assert found[:MIB] == content[:MIB]
    assert found[2 * MIB :] == content[2 * MIB :]
    assert found[MIB : 2 * MIB] != content[MIB : 2 * MIB]
    refused("create", *CHEAP, "--key-file", key, "--header", tmp_path / "h2", "--offset", "3M", "--size", "1M", disk)
