"""Getting at data when the header is damaged, and telling whether header and payload belong together."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from support.cryptsetup import LUKS1_XTS, XTS_512, LuksFiles, cryptsetup
from support.mounts import Mounted, is_mounted, lukshdrfs
from support.tools import program
from support.volumes import MIB, MakeVolume

pytestmark = pytest.mark.needs("fuse", "cryptsetup")

PLAIN = random.Random(6).randbytes(MIB)


@pytest.fixture
def written(make_volume: MakeVolume) -> LuksFiles:
    """Return a LUKS2 volume with data in it."""
    return filled(make_volume(XTS_512))


def filled(files: LuksFiles) -> LuksFiles:
    """Write something to the start of a volume."""
    with (
        Mounted(files.payload, header=files.header, key_file=files.key_file) as mount,
        mount.image.open("r+b", buffering=0) as image,
    ):
        image.write(PLAIN)
    return files


def damage(header: Path, *places: tuple[int, bytes]) -> None:
    """Overwrite parts of a header."""
    with header.open("r+b") as file:
        for offset, data in places:
            os.pwrite(file.fileno(), data, offset)


def forced(files: LuksFiles) -> Mounted:
    """Mount what can be saved."""
    return Mounted(files.payload, "--read-only", "--force-header", header=files.header, key_file=files.key_file)


def refused(files: LuksFiles, *options: str) -> tuple[int, str]:
    """Try to mount, which must fail in one line that is an error; return the exit status and the line."""
    place = files.payload.with_name("nowhere")
    place.mkdir(exist_ok=True)
    done = lukshdrfs("mount", *options, "--header", files.header, "--key-file", files.key_file, files.payload, place)
    assert done.returncode != 0
    assert not is_mounted(place)
    return done.returncode, done.stderr


LUKS2_DAMAGE = {
    "both checksums": [(300, b"damage"), (16384 + 300, b"damage")],
    "both magics": [(0, b"gone"), (16384, b"gone")],
    "garbage behind the JSON": [(16000, b"garbage"), (16384 + 16000, b"garbage")],
    "salts and places": [(104, bytes(64)), (256, b"\xff" * 8), (16384 + 104, bytes(64)), (16384 + 256, b"\xff" * 8)],
}


@pytest.mark.parametrize("kind", LUKS2_DAMAGE)
def test_luks2_header_of_which_both_copies_are_damaged(kind: str, written: LuksFiles) -> None:
    """It is refused, by cryptsetup too; forced, and for reading only, its data are there. The header stays as it is."""
    damage(written.header, *LUKS2_DAMAGE[kind])
    before = written.header.read_bytes()
    assert refused(written)[0] == 4
    assert refused(written, "--force-header")[0] == 1, "not for writing"
    with pytest.raises(AssertionError):
        cryptsetup("luksDump", "--disable-locks", written.header)
    with forced(written) as mount:
        assert mount.image.read_bytes()[:MIB] == PLAIN
        with pytest.raises(OSError, match="Read-only"):
            mount.image.open("r+b")
    assert written.header.read_bytes() == before


def test_luks2_header_that_is_cut_off(written: LuksFiles) -> None:
    """A file that ends behind the keyslot in use is enough."""
    os.truncate(written.header, 32768 + 258048)
    assert refused(written)[0] == 4
    with forced(written) as mount:
        assert mount.image.read_bytes()[:MIB] == PLAIN


def test_luks1_header_with_keyslots_that_make_no_sense(make_volume: MakeVolume) -> None:
    """A partition table written over the unused keyslots makes the header invalid; the one in use still opens it."""
    files = filled(make_volume(LUKS1_XTS))
    damage(files.header, (208 + 48, bytes(range(1, 49)) * 7))
    assert refused(files)[0] == 4
    with forced(files) as mount:
        assert mount.image.read_bytes()[:MIB] == PLAIN


def test_nothing_is_made_of_nothing(written: LuksFiles) -> None:
    """Where no header is, forcing finds none; and a key that does not fit the digest is never taken."""
    damage(written.header, (0, random.Random(1).randbytes(32768)))
    assert refused(written, "--force-header", "--read-only")[0] == 4


def test_repair_from_a_copy(written: LuksFiles, tmp_path: Path) -> None:
    """A damaged header is replaced by a sound copy, and kept; a sound one stays as it is."""
    copy = Path(shutil.copy(written.header, tmp_path / "copy"))
    sound = written.header.read_bytes()
    repair = ("header", "repair", "--header", written.header, "--from", copy)
    assert lukshdrfs(*repair).stdout == "nothing to repair\n"
    damage(written.header, (0, bytes(40000)))
    damaged = written.header.read_bytes()
    assert lukshdrfs(*repair).returncode == 0
    assert written.header.read_bytes() == sound
    assert written.header.with_name(f"{written.header.name}.before").read_bytes()[: len(sound)] == damaged

    damage(written.header, (32768 + 4096, bytes(4096)))  # key material: both copies of the metadata are sound
    assert lukshdrfs("header", "verify", written.header).returncode == 4
    assert lukshdrfs(*repair).returncode == 0
    assert written.header.read_bytes() == sound


def test_no_repair_from_what_is_damaged_or_anothers(make_volume: MakeVolume, written: LuksFiles) -> None:
    """A copy that is damaged itself, or is another volume's, is refused, and nothing changes."""
    other = make_volume(XTS_512, 2 * MIB)
    damage(written.header, (300, b"damage"))
    before = written.header.read_bytes()
    done = lukshdrfs("header", "repair", "--header", written.header, "--from", other.header)
    assert done.returncode == 4
    damage(other.header, (300, b"damage"))
    done = lukshdrfs("header", "repair", "--header", written.header, "--from", other.header)
    assert done.returncode == 4
    assert "damaged itself" in done.stderr
    assert written.header.read_bytes() == before


def pair(files: LuksFiles, *arguments: str | Path) -> str:
    """Return how severe `header verify` finds it that header and payload may not belong together."""
    done = lukshdrfs("header", "verify", "--json", "--key-file", files.key_file, *arguments)
    findings = json.loads(done.stdout)["findings"]
    return next(str(finding["severity"]) for finding in findings if finding["subject"] == "pair")


@pytest.mark.needs("mkfs.ext4")
def test_header_and_payload_belong_together(make_volume: MakeVolume, tmp_path: Path) -> None:
    """With a file system in the plaintext, the right header is told from another one that fits as well."""
    files, other = make_volume(XTS_512), make_volume(XTS_512, 8 * MIB)
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        subprocess.run([program("mkfs.ext4"), "-q", mount.image], check=True)
        assert pair(files, "--header", files.header, files.payload) == "note", "while it is mounted, too"
    assert pair(files, "--header", files.header, files.payload) == "note"
    cryptsetup(
        "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
        "--key-file", files.key_file, "--header", tmp_path / "another.hdr", files.payload,
    )  # fmt: skip
    assert pair(files, "--header", tmp_path / "another.hdr", files.payload) == "warning"
    assert pair(other, "--header", other.header, other.payload) == "warning", "it is empty"


def test_times_are_put_back(volume: LuksFiles) -> None:
    """With `--preserve-times`, the payload looks as old as before; without, writing shows."""
    old = time.time_ns() - 10**15
    for options, kept in ((["-o", "preserve-times"], True), ([], False)):
        os.utime(volume.payload, ns=(old, old))
        with (
            Mounted(volume.payload, *options, header=volume.header, key_file=volume.key_file) as mount,
            mount.image.open("r+b", buffering=0) as image,
        ):
            image.write(b"new")
            image.seek(0)
            assert image.read(3) == b"new"
        status = volume.payload.stat()
        assert (status.st_mtime_ns == old) == kept
        if kept:
            assert status.st_atime_ns == old
