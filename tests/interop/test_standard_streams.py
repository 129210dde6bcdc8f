"""`-` is standard input where something is read, and standard output where a header is written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import LUKS1_XTS, XTS_512, LuksFiles, cryptsetup, keyslot_of
from support.mounts import LUKSHDRFS, Argument, lukshdrfs
from support.terminal import Terminal
from support.volumes import MakeVolume

pytestmark = pytest.mark.needs("cryptsetup")


@pytest.fixture
def files(make_volume: MakeVolume) -> LuksFiles:
    return make_volume(XTS_512)


def output_of(*command: Argument, stdin: bytes = b"", folder: Path) -> bytes:
    """Return what a command writes to a pipe, and check that it makes no file of an odd name."""
    before = sorted(folder.iterdir())
    done = subprocess.run([LUKSHDRFS, *command], input=stdin, capture_output=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert sorted(folder.iterdir()) == before
    return done.stdout


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "fd:1", "/dev/fd/1"])
def test_a_backup_goes_to_standard_output(name: str, files: LuksFiles, tmp_path: Path) -> None:
    """What comes out is what a file would have got, to the last byte."""
    backup = tmp_path / "backup"
    cryptsetup("luksHeaderBackup", "--header-backup-file", backup, files.header)
    written = output_of("header", "backup", "--header", files.header, name, folder=files.header.parent)
    assert written == backup.read_bytes()


def test_a_backup_goes_from_one_to_the_other(files: LuksFiles, make_volume: MakeVolume, tmp_path: Path) -> None:
    """`backup -` into `restore -`, and into everything that reads a header."""
    folder = files.header.parent
    data = output_of("header", "backup", "--header", files.header, "--header-backup-file", "-", folder=folder)
    restored = tmp_path / "restored"
    output_of("header", "restore", "--header", restored, "-", stdin=data, folder=folder)
    assert keyslot_of(restored, files.key_file) == 0
    assert output_of("header", "backup", "--header", "-", "-", stdin=data, folder=folder) == data


def test_other_headers_go_to_standard_output(files: LuksFiles, make_volume: MakeVolume, tmp_path: Path) -> None:
    """A converted header, and one that is taken out of a payload, are written to `-` as well."""
    folder = files.header.parent
    converted = tmp_path / "converted"
    converted.write_bytes(
        output_of("header", "convert", "--header", files.header, "--type", "luks1", "--output", "-", folder=folder)
    )
    assert keyslot_of(converted, files.key_file) == 0
    attached = make_volume(LUKS1_XTS)
    cryptsetup(
        "luksFormat", *LUKS1_XTS.options, "--offset", "4096", "--key-file", attached.key_file, attached.payload,
    )  # fmt: skip
    exported = tmp_path / "exported"
    exported.write_bytes(output_of("header", "export", attached.payload, "-", folder=attached.payload.parent))
    assert keyslot_of(exported, attached.key_file) == 0
    wiped = lukshdrfs("header", "export", "--wipe", attached.payload, "-")
    assert wiped.returncode == 1
    assert keyslot_of(attached.payload, attached.key_file) == 0


def test_no_header_is_written_to_a_terminal(files: LuksFiles) -> None:
    """A terminal gets no binary data: one line says what to do instead."""
    with Terminal(LUKSHDRFS, "header", "backup", "--header", files.header, "-") as terminal:
        assert terminal.wait() == 1
        assert b"terminal" in terminal.shown
        assert len(terminal.shown) < 300


def test_a_full_output_is_an_error(files: LuksFiles) -> None:
    """What cannot be written is said, with the exit code of a device that fails."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [LUKSHDRFS, "header", "backup", "--header", files.header, "-"],
            stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert done.returncode == 4
    assert b"standard output: No space left" in done.stderr


@pytest.mark.parametrize("name", ["-", "fd:1"])
def test_what_must_be_a_file_is_none_of_a_streams_name(name: str, files: LuksFiles, tmp_path: Path) -> None:
    """A header is neither restored nor created in a place of this name, and no such file is made."""
    commands: list[tuple[list[Argument], int]] = [
        (["header", "restore", "--header", name, files.header], 4),
        (["create", "--header", name, "--key-file", files.key_file, files.payload], 1),
    ]
    for command, code in commands:
        done = subprocess.run([LUKSHDRFS, *command], capture_output=True, check=False, cwd=tmp_path)
        assert done.returncode == code, done.stderr
    assert list(tmp_path.glob(name)) == []
