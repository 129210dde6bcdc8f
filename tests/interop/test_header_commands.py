"""Headers that are backed up, restored, moved and renamed: each program does with the other's as with its own."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
from pathlib import Path

import pytest
from support.created import COSTS, SECRETS, SMALL, create
from support.cryptsetup import (
    LUKS1_XTS,
    XTS_512,
    LuksFiles,
    cryptsetup,
    dump,
    json_metadata,
    keyslot_of,
    try_cryptsetup,
    volume_key,
)
from support.dmcrypt import run_in_guest
from support.keyslots import opened_by_us, run
from support.mounts import Argument, lukshdrfs

import lukshdrfs as package

pytestmark = pytest.mark.needs("cryptsetup")

MIB = 1 << 20
CHEAP = COSTS["pbkdf2"]
OPTIONS = {"luks1": ["--type", "luks1", *CHEAP], "luks2": ["--type", "luks2", *SMALL, *CHEAP]}
LAYOUTS = {"luks1": LUKS1_XTS, "luks2": XTS_512}
EXTENTS = {"luks1": 4096 + 7 * 258048 + 256000, "luks2": 2 * (16 << 10) + MIB}
"""Where the keyslot areas end: in LUKS1, the last one is not filled up."""
BY_TYPE = pytest.mark.parametrize("kind", ["luks1", "luks2"])
BY_MAKER = pytest.mark.parametrize("maker", ["we", "cryptsetup"])
BY_PLACE = pytest.mark.parametrize("place", ["attached", "detached"])


def make(folder: Path, kind: str, maker: str, place: str) -> tuple[LuksFiles, Path]:
    """Make a volume of two keys; return its files, and where its header is."""
    files = LuksFiles(folder / "payload.img", folder / "header.img", folder / "key")
    second = folder / "second"
    files.key_file.write_bytes(SECRETS[0])
    second.write_bytes(SECRETS[1])
    with files.payload.open("wb") as stream:
        os.truncate(stream.fileno(), 4 * MIB)
    where = ["--header", str(files.header)] if place == "detached" else []
    header = files.header if place == "detached" else files.payload
    if maker == "we":
        keys: list[Argument] = ["--key-file", files.key_file, "--key-file", second]
        create(*OPTIONS[kind], *keys, *where, files.payload)
        return files, header
    at = ["--offset", f"{2 * MIB // 512}"] if place == "attached" else []
    cryptsetup("luksFormat", *LAYOUTS[kind].options, *at, "--key-file", files.key_file, *where, files.payload)
    cryptsetup("luksAddKey", *CHEAP, "--key-file", files.key_file, header, second)
    return files, header


@BY_PLACE
@BY_MAKER
@BY_TYPE
def test_backups_are_the_same(kind: str, maker: str, place: str, tmp_path: Path) -> None:
    """A backup that we make has the very bytes of cryptsetup's, whoever made the header."""
    _, header = make(tmp_path, kind, maker, place)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run("header", "backup", header, ours)
    cryptsetup("luksHeaderBackup", "--header-backup-file", theirs, header)
    assert ours.read_bytes() == theirs.read_bytes()


@BY_PLACE
@BY_MAKER
@BY_TYPE
@pytest.mark.parametrize("damage", ["keys", "start"])
def test_restored_headers_are_the_same(kind: str, maker: str, place: str, damage: str, tmp_path: Path) -> None:
    """
    What we restore from cryptsetup's backup and what cryptsetup restores from ours is the same file, byte for byte.

    That is so after the keys have changed, and where the header's start is lost.
    """
    files, header = make(tmp_path, kind, maker, place)
    ours, theirs, twin = tmp_path / "ours", tmp_path / "theirs", tmp_path / "twin"
    run("header", "backup", header, ours)
    cryptsetup("luksHeaderBackup", "--header-backup-file", theirs, header)
    intact = header.read_bytes()
    if damage == "keys":
        run("key", "change", *CHEAP, "--key-slot", "0", "--key-file", files.key_file,
            "--new-key-file", tmp_path / "second", header)  # fmt: skip
        assert keyslot_of(header, files.key_file) is None
    else:
        with header.open("r+b") as stream:
            stream.write(bytes(64 << 10))
        assert try_cryptsetup("luksDump", header).returncode != 0
    shutil.copyfile(header, twin)

    place_of: list[Argument] = ["--header", header] if place == "detached" else [header]
    run("header", "restore", *place_of, theirs)
    cryptsetup("luksHeaderRestore", "--header-backup-file", ours, twin)
    ours_now, theirs_now = header.read_bytes(), twin.read_bytes()
    if place == "detached" and damage == "keys":
        # a header file is replaced as a whole: it ends where the backup does
        assert ours_now[: EXTENTS[kind]] == theirs_now[: EXTENTS[kind]]
        assert ours_now == theirs.read_bytes()
    else:
        assert ours_now == theirs_now
    for restored in (header, twin):
        assert keyslot_of(restored, files.key_file) == opened_by_us(restored, files.key_file) == 0
    # LUKS1: what lies between phdr and keyslots is no part of a backup, and zeros in both programs
    assert ours_now[4096 : EXTENTS[kind]] == intact[4096 : EXTENTS[kind]]
    assert ours_now[:592] == intact[:592]


@BY_MAKER
@BY_TYPE
def test_restored_where_there_was_none(kind: str, maker: str, tmp_path: Path) -> None:
    """A backup of either program becomes a header file that opens in both."""
    files, header = make(tmp_path, kind, maker, "detached")
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    cryptsetup("luksHeaderBackup", "--header-backup-file", backup, header)
    run("header", "restore", "--header", restored, backup)
    assert restored.read_bytes() == backup.read_bytes()
    assert keyslot_of(restored, files.key_file) == 0


def test_backup_of_another_volume(tmp_path: Path) -> None:
    """Another volume's backup, which cryptsetup restores if nobody is asked, takes --force, and then it is the same."""
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    (files, header), (_, other) = (make(folder, "luks2", "cryptsetup", "detached") for folder in folders)
    backup, twin = tmp_path / "backup", tmp_path / "twin"
    run("header", "backup", other, backup)
    shutil.copyfile(header, twin)
    before = header.read_bytes()
    refused = lukshdrfs("header", "restore", "--header", header, backup)
    assert (refused.returncode, header.read_bytes()) == (4, before)
    assert "another volume" in refused.stderr

    run("header", "restore", "--force", "--header", header, backup)
    cryptsetup("luksHeaderRestore", "--header-backup-file", backup, twin)
    assert header.read_bytes() == twin.read_bytes()
    kept = header.with_name("header.img.before")
    assert kept.read_bytes() == before
    assert keyslot_of(kept, files.key_file) == 0


@BY_TYPE
def test_pinned_header_is_the_one_that_is_replaced(kind: str, tmp_path: Path) -> None:
    """With a pin, no other header is overwritten: neither a sound one, nor a damaged one by another volume's backup."""
    files, header = make(tmp_path, kind, "we", "detached")
    backup, before = tmp_path / "backup", header.read_bytes()
    run("header", "backup", header, backup)
    for pin in (["--header-uuid", "0b1d6d2e-5d4a-4a2f-9d0a-31a3a5b5c0de"], ["--header-sha256", "0" * 64]):
        refused = lukshdrfs("header", "restore", "--force", *pin, "--header", header, backup)
        assert (refused.returncode, header.read_bytes()) == (4, before)
        header.write_bytes(bytes(64 << 10) + before[64 << 10 :])
        assert lukshdrfs("header", "restore", *pin, "--header", header, backup).returncode == 4
        header.write_bytes(before)
    run(
        "header", "restore", "--header-uuid", cryptsetup("luksUUID", header).decode().strip(),
        "--header-sha256", hashlib.sha256(before).hexdigest(), "--header", header, backup,
    )  # fmt: skip
    assert keyslot_of(header, files.key_file) == 0


def test_data_right_behind_the_last_area_stay(tmp_path: Path) -> None:
    """A LUKS1 backup is filled up to whole pages; data that begin before that stay, as with cryptsetup."""
    files, header = make(tmp_path, "luks1", "cryptsetup", "attached")
    data = random.Random(9).randbytes(4096)
    with header.open("r+b") as stream:
        os.pwrite(stream.fileno(), (EXTENTS["luks1"] // 512).to_bytes(4, "big"), 104)
        os.pwrite(stream.fileno(), data, EXTENTS["luks1"])
    backup, twin = tmp_path / "backup", tmp_path / "twin"
    run("header", "backup", header, backup)
    shutil.copyfile(header, twin)
    run("header", "restore", header, backup)
    cryptsetup("luksHeaderRestore", "--header-backup-file", backup, twin)
    assert header.read_bytes() == twin.read_bytes()
    assert header.read_bytes()[EXTENTS["luks1"] :].startswith(data)
    assert keyslot_of(header, files.key_file) == 0


@BY_MAKER
@BY_TYPE
def test_exported_header(kind: str, maker: str, tmp_path: Path) -> None:
    """An exported header is what cryptsetup's backup would be, and says what the attached one said."""
    files, header = make(tmp_path, kind, maker, "attached")
    before, backup = dump(header), tmp_path / "backup"
    cryptsetup("luksHeaderBackup", "--header-backup-file", backup, header)
    key = volume_key(LuksFiles(files.payload, files.payload, files.key_file))
    run("header", "export", "--wipe", files.payload, files.header)
    assert files.header.read_bytes() == backup.read_bytes()
    assert dump(files.header) == before
    assert volume_key(files) == key
    assert try_cryptsetup("isLuks", files.payload).returncode != 0


@pytest.mark.root
@pytest.mark.needs("dmcrypt-vm")
def test_kernel_opens_exported_and_attached(tmp_path: Path) -> None:
    """The kernel finds the data with a header that was exported, and behind one that was attached."""
    plain = {}
    for number, (kind, maker) in enumerate(itertools.product(LAYOUTS, ("we", "cryptsetup"))):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        files, _ = make(folder, kind, maker, "attached")
        with package.open_volume(files.payload, passphrase=files.secret) as volume:
            plain[number] = random.Random(number).randbytes(volume.size)
            volume.pwrite(plain[number], offset=0)
            volume.flush()
        shutil.copyfile(files.payload, folder / "attached.img")
        run("header", "export", "--wipe", files.payload, files.header)
        with (folder / "attached.img").open("r+b") as stream:
            stream.write(random.Random(5).randbytes(MIB))
        run("header", "attach", "--header", files.header, folder / "attached.img")
    run_in_guest(
        tmp_path,
        """
        for folder in [0-9]; do
            cd $folder
            cryptsetup open --readonly --header header.img --key-file second payload.img vol
            sha256sum </dev/mapper/vol >sums
            cryptsetup close vol
            cryptsetup open --readonly --key-file key attached.img vol
            sha256sum </dev/mapper/vol >>sums
            cryptsetup close vol
            cd ..
        done
        """,
    )
    for number, written in plain.items():
        expected = f"{hashlib.sha256(written).hexdigest()}  -\n"
        assert (tmp_path / f"{number}" / "sums").read_text() == 2 * expected


@BY_MAKER
@pytest.mark.parametrize("label", ["name", "", "b\u00fcro", "x" * 47])
def test_label_and_subsystem(label: str, maker: str, tmp_path: Path) -> None:
    """Label and subsystem that we set are what cryptsetup shows, and the header is the one that it would write."""
    files, header = make(tmp_path, "luks2", maker, "detached")
    twin = tmp_path / "twin"
    cryptsetup("config", "--label", "before", "--subsystem", "stays", header)
    shutil.copyfile(header, twin)
    run("header", "set", "--label", label, header)
    cryptsetup("config", "--label", label, "--subsystem", "stays", twin)
    assert dump(header) == dump(twin)
    assert json_metadata(header) == json_metadata(twin)
    ours, theirs = header.read_bytes(), twin.read_bytes()
    assert ours[:104] == theirs[:104]  # up to the checksum's salt: sizes, epoch, label
    assert ours[168:256] == theirs[168:256]  # UUID, subsystem
    assert ours[32 << 10 :] == theirs[32 << 10 :]
    run("header", "set", "--subsystem", label, header)
    assert f"Subsystem:     \t{label or '(no subsystem)'}\n" in dump(header)
    assert keyslot_of(header, files.key_file) == 0


@BY_MAKER
@BY_TYPE
def test_uuid(kind: str, maker: str, tmp_path: Path) -> None:
    """A UUID that we set is what `luksUUID` sets."""
    uuid = "0b1d6d2e-5d4a-4a2f-9d0a-31a3a5b5c0de"
    files, header = make(tmp_path, kind, maker, "detached")
    twin = tmp_path / "twin"
    shutil.copyfile(header, twin)
    run("header", "set", "--uuid", uuid, header)
    cryptsetup("luksUUID", "--uuid", uuid, twin)
    assert cryptsetup("luksUUID", header).decode() == f"{uuid}\n"
    assert dump(header) == dump(twin)
    if kind == "luks1":
        assert header.read_bytes() == twin.read_bytes()
    assert keyslot_of(header, files.key_file) == 0
