"""
`create`, `key` and `header` where they cannot do what they are told.

Each case has its exit code and its one line; what was there is as it was, and nothing half-made is left.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles, cryptsetup
from support.devices import loop_device, tmpfs
from support.files import digest
from support.mounts import LUKSHDRFS, Argument, lukshdrfs, without_override
from support.processes import cpu_seconds, daemons
from support.tools import program
from support.volumes import MIB
from support.waiting import wait_until

from lukshdrfs.headers import read_header

pytestmark = [pytest.mark.needs("cryptsetup")]

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
SMALL = [*CHEAP, "--luks2-keyslots-size", "1M"]


def contents(folder: Path) -> dict[str, str]:
    """Return what is in a folder and below."""
    return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*"))}


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a command has failed as it should, with one line that has some words in it."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@dataclasses.dataclass
class Place:
    """A volume, and a folder in which nothing must change."""

    files: LuksFiles
    folder: Path

    @property
    def new_key(self) -> Path:
        path = self.folder / "new-key"
        path.write_bytes(b"another secret")
        return path

    def create(self, *options: Argument, payload: Path | str, header: Path | str | None = None) -> list[Argument]:
        where: list[Argument] = [] if header is None else ["--header", header]
        return ["create", *where, "--key-file", self.files.key_file, *options, payload]

    def edits(self, header: Path | str) -> dict[str, list[Argument]]:
        """Return commands that would change a header."""
        on: list[Argument] = ["--header", header, "--key-file", self.files.key_file]
        return {
            "add": ["key", "add", *CHEAP, *on, "--new-key-file", self.new_key],
            "change": ["key", "change", *CHEAP, *on, "--new-key-file", self.new_key],
            "remove": ["key", "remove", "--force", *on],
            "set": ["header", "set", "--header", header, "--label", "new"],
        }


@pytest.fixture
def place(volume: LuksFiles) -> Place:
    return Place(volume, volume.payload.parent)


# --- storage ----------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Return a file system with room for 256 KiB and no more."""
    with tmpfs(tmp_path / "full", 256 << 10) as folder:
        yield folder


NO_SPACE = os.strerror(28)


@pytest.mark.root
@pytest.mark.needs("mount")
def test_no_room_for_a_new_header(place: Place, full: Path) -> None:
    """Where there is no room for a header, none is made, and the payload that was made for it is gone."""
    before = contents(place.folder)
    new = place.folder / "new.img"
    refused(lukshdrfs(*place.create(*SMALL, "--size", "1M", payload=new, header=full / "h")), 4, NO_SPACE)
    refused(lukshdrfs(*place.create(*SMALL, payload=place.files.payload, header=full / "h")), 4, NO_SPACE)
    assert contents(full) == {}
    assert contents(place.folder) == before


@pytest.mark.root
@pytest.mark.needs("mount")
def test_no_room_for_a_new_payload(place: Place, full: Path) -> None:
    """A payload that does not fit on its storage is gone again, and there is no header for it."""
    before = contents(place.folder)
    refused(
        lukshdrfs(*place.create(*SMALL, "--size", "1M", payload=full / "p", header=place.folder / "h")), 4, NO_SPACE
    )
    refused(lukshdrfs(*place.create(*SMALL, "--size", "3M", payload=full / "p")), 4, NO_SPACE)
    assert contents(full) == {}
    assert contents(place.folder) == before


@pytest.mark.root
@pytest.mark.needs("mount")
def test_no_room_for_a_backup(place: Place, full: Path) -> None:
    """A backup that does not fit is not there at all."""
    refused(lukshdrfs("header", "backup", "--header", place.files.header, full / "backup"), 4, NO_SPACE)
    refused(
        lukshdrfs("header", "convert", "--type", "luks1", "--header", place.files.header, "--output", full / "o"), 4
    )
    assert contents(full) == {}


@pytest.mark.root
@pytest.mark.needs("mount")
@pytest.mark.parametrize("kept", ["beside", "elsewhere"])
def test_no_room_to_restore(kept: str, place: Place, tmp_path: Path) -> None:
    """Where there is no room for the copy that is kept, or for the new header beside the old one, the old one stays."""
    backup = place.folder / "backup.img"
    assert lukshdrfs("header", "backup", "--header", place.files.header, backup).returncode == 0
    size = place.files.header.stat().st_size
    with tmpfs(tmp_path / "tight", size + (256 << 10)) as folder:
        header = folder / "header.img"
        header.write_bytes(place.files.header.read_bytes())
        before = contents(folder)
        keep: list[Argument] = ["--keep", place.folder / "kept.img"] if kept == "elsewhere" else []
        done = lukshdrfs("header", "restore", "--header", header, *keep, backup)
        assert done.returncode == 4, done.stderr
        assert done.stderr.splitlines()[-1].endswith(NO_SPACE)
        assert contents(folder) == before


@pytest.mark.parametrize("edit", ["add", "change", "remove", "set"])
def test_header_that_may_only_be_read(edit: str, place: Place) -> None:
    """A header file without the right to write is not edited."""
    place.files.header.chmod(0o400)
    command = place.edits(place.files.header)[edit]
    before = contents(place.folder)
    refused(lukshdrfs(*command, command=without_override()), 4, "cannot be written")
    assert contents(place.folder) == before


@pytest.mark.root
@pytest.mark.needs("loop")
def test_header_on_a_read_only_device(place: Place) -> None:
    """A header on a device that cannot be written is not edited."""
    with loop_device(place.files.header, "--read-only") as device:
        edits = place.edits(device)
        before = contents(place.folder)
        for name in ("change", "remove"):
            refused(lukshdrfs(*edits[name]), 4, device)
        done = lukshdrfs(*place.create(*SMALL, "--force", payload=place.files.payload, header=device))
        assert done.returncode == 4, done.stderr
        assert contents(place.folder) == before


@pytest.mark.root
@pytest.mark.needs("mount")
def test_header_on_a_read_only_file_system(place: Place, tmp_path: Path) -> None:
    """On a file system that is mounted read-only, nothing is edited, replaced or made."""
    with tmpfs(tmp_path / "small", 4 * MIB) as folder:
        header, backup = folder / "header.img", folder / "backup.img"
        for path in (header, backup):
            path.write_bytes(place.files.header.read_bytes())
        subprocess.run([program("mount"), "-o", "remount,ro", folder], check=True)
        before = contents(folder)
        commands: list[list[Argument]] = [
            place.edits(header)["change"],
            ["header", "restore", "--header", header, "--keep", place.folder / "kept.img", backup],
            place.create(*SMALL, "--size", "1M", payload=place.folder / "new.img", header=folder / "new.hdr"),
            ["header", "backup", "--header", header, folder / "new.hdr"],
        ]
        for command in commands:
            refused(lukshdrfs(*command), 4, os.strerror(30))
        assert contents(folder) == before
        assert not (place.folder / "new.img").exists()
        assert not (place.folder / "kept.img").exists()


# --- arguments --------------------------------------------------------------------------------------------------

NO_HEADER: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"not a header\n" * 50_000),
    "random": lambda path: path.write_bytes(os.urandom(2 * MIB)),
}


@pytest.mark.parametrize("what", NO_HEADER)
def test_file_that_is_no_header(what: str, place: Place) -> None:
    """No command takes a file that is no header for one, and `create` does not replace it."""
    other = place.folder / "other"
    NO_HEADER[what](other)
    commands: list[list[Argument]] = [
        place.edits(other)["add"],
        ["header", "repair", "--header", other],
        ["header", "backup", "--header", other, place.folder / "backup"],
        place.create(*SMALL, payload=place.files.payload, header=other),
    ]
    before = contents(place.folder)
    for command in commands:
        refused(lukshdrfs(*command), 4, "other")
    assert contents(place.folder) == before


def test_header_and_payload_are_one_file(place: Place) -> None:
    """A header file that is the payload, by this name or a link, is refused."""
    files = place.files
    link = place.folder / "link"
    link.symlink_to(files.payload)
    new = place.folder / "new.img"
    before = contents(place.folder)
    for header in (files.payload, link):
        refused(lukshdrfs(*place.create(*SMALL, "--force", payload=files.payload, header=header)), 1, "same file")
    refused(lukshdrfs(*place.create(*SMALL, "--size", "1M", payload=new, header=new)), 1, "same file")
    assert contents(place.folder) == before


SIZES: dict[str, tuple[list[str], int]] = {
    "0": (["--size", "0"], 1),
    "1": (["--size", "1"], 4),
    "511": (["--size", "511"], 4),
    "a byte too many": (["--size", "1048577"], 4),
    "not whole sectors of 4096": (["--size", "1049088", "--sector-size", "4096"], 4),
    "no number": (["--size", "many"], 1),
    "negative": (["--size", "-1"], 1),
    "more than there is": (["--size", "9223372036854775807"], 4),
    "far more": (["--size", "99999999999999999999T"], 1),
    "only up to the offset": (["--size", "1M", "--offset", "1M"], 4),
    "offset off sectors": (["--size", "2M", "--offset", "1000"], 1),
}


@pytest.mark.parametrize("size", SIZES)
def test_size_that_cannot_be(size: str, place: Place) -> None:
    """A payload has whole sectors; for any other size nothing is made."""
    options, code = SIZES[size]
    before = contents(place.folder)
    new, header = place.folder / "new.img", place.folder / "new.hdr"
    refused(lukshdrfs(*place.create(*SMALL, *options, payload=new, header=header)), code)
    assert contents(place.folder) == before


@pytest.mark.parametrize("size", [1, 511, MIB + 1])
def test_payload_without_whole_sectors(size: int, place: Place) -> None:
    """A payload that is there and has no whole sectors gets no header."""
    os.truncate(place.files.payload, size)
    before = contents(place.folder)
    for header in (place.folder / "new.hdr", None):
        refused(lukshdrfs(*place.create(*SMALL, payload=place.files.payload, header=header)), 4, "sectors")
    assert contents(place.folder) == before


COSTS: dict[str, list[str]] = {
    "no iterations": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "0"],
    "too few iterations": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "999"],
    "too many iterations": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", str(1 << 40)],
    "no passes": ["--pbkdf-force-iterations", "0", "--pbkdf-memory", "64"],
    "too many passes": ["--pbkdf-force-iterations", str(1 << 40), "--pbkdf-memory", "64"],
    "no memory": ["--pbkdf-memory", "0"],
    "too much memory": ["--pbkdf-memory", str(1 << 40)],
    "no threads": ["--pbkdf-parallel", "0"],
    "too many threads": ["--pbkdf-parallel", "1000"],
    "no time": ["--iter-time", "0"],
    "memory of pbkdf2": ["--pbkdf", "pbkdf2", "--pbkdf-memory", "64"],
    "threads of pbkdf2": ["--pbkdf", "pbkdf2", "--pbkdf-parallel", "1"],
    "unknown KDF": ["--pbkdf", "scrypt"],
}


@pytest.mark.parametrize("cost", COSTS)
def test_cost_that_cannot_be(cost: str, place: Place) -> None:
    """A KDF that costs nothing or more than anybody has is refused before anything is made or changed."""
    new_key = place.new_key
    before = contents(place.folder)
    new, header = place.folder / "new.img", place.folder / "new.hdr"
    refused(lukshdrfs(*place.create(*COSTS[cost], "--size", "1M", payload=new, header=header), timeout=10), 1)
    on: list[Argument] = ["--header", place.files.header, "--key-file", place.files.key_file]
    refused(lukshdrfs("key", "change", *on, "--new-key-file", new_key, *COSTS[cost], timeout=10), 1)
    assert contents(place.folder) == before


# --- data that is there -----------------------------------------------------------------------------------------


def make_ext4(path: Path) -> None:
    subprocess.run([program("mkfs.ext4"), "-q", "-F", path], check=True)


def make_swap(path: Path) -> None:
    subprocess.run([program("mkswap"), path], check=True, capture_output=True)


def make_partition_table(path: Path) -> None:
    """Write a table with one partition from the first MiB on, as sfdisk does."""
    entry = bytes([0, 0x20, 0x21, 0, 0x83, 0x82, 0x03, 0]) + (2048).to_bytes(4, "little") + (2048).to_bytes(4, "little")
    with path.open("r+b") as stream:
        stream.seek(446)
        stream.write(entry.ljust(64, b"\0") + b"\x55\xaa")


DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "file system": (make_ext4, "ext4"),
    "swap": (make_swap, "swap"),
    "partition table": (make_partition_table, "dos"),
}


@pytest.mark.needs("mkfs.ext4", "mkswap")
@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
@pytest.mark.parametrize("what", DATA)
def test_data_is_not_overwritten(what: str, attached: bool, place: Place) -> None:
    """`create` does not take a payload on which something is recognised, and says what."""
    make, name = DATA[what]
    os.truncate(place.files.payload, 8 * MIB)
    make(place.files.payload)
    before = contents(place.folder)
    header = None if attached else place.folder / "new.hdr"
    refused(lukshdrfs(*place.create(*SMALL, payload=place.files.payload, header=header)), 4, name, "--force")
    assert contents(place.folder) == before
    done = lukshdrfs(*place.create(*SMALL, "--force", payload=place.files.payload, header=header))
    assert done.returncode == 0, done.stderr
    assert name in done.stderr


@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
def test_other_volume_is_not_overwritten(attached: bool, place: Place) -> None:
    """`create` does not take a payload that has a LUKS header at its start."""
    os.truncate(place.files.payload, 8 * MIB)
    cryptsetup(
        "luksFormat", *CHEAP, "--luks2-keyslots-size", "1m", "--key-file", place.files.key_file, place.files.payload
    )
    before = contents(place.folder)
    header = None if attached else place.folder / "new.hdr"
    refused(lukshdrfs(*place.create(*SMALL, payload=place.files.payload, header=header)), 4, "crypto_LUKS", "--force")
    assert contents(place.folder) == before


def test_sparse_payload_is_said(place: Place) -> None:
    """`create --no-wipe` says in one line that the payload shows what is used of it, and does nothing else besides."""
    new, header = place.folder / "new.img", place.folder / "new.hdr"
    done = lukshdrfs(*place.create(*SMALL, "--no-wipe", "--size", "8M", payload=new, header=header))
    assert done.returncode == 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "sparse" in done.stderr
    assert new.stat().st_blocks == 0
    assert new.stat().st_size == 8 * MIB


# --- interrupted ------------------------------------------------------------------------------------------------

SIGNALS = [signal.SIGINT, signal.SIGTERM]
LONG = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", str(1 << 29)]
"""A KDF that takes minutes."""


def interrupted(command: list[Argument], begun: Callable[[], object], number: signal.Signals) -> list[str]:
    """Run a command, send it a signal when it has begun, and return its lines; it ends at once, as a shell has it."""
    # what runs in the background may have inherited that it ignores SIGINT
    hearing: list[Argument] = [program("env"), "--default-signal=INT", LUKSHDRFS]
    with subprocess.Popen(
        [*hearing, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            wait_until(begun, "it has begun")
            assert process.poll() is None
            process.send_signal(number)
            start = time.monotonic()
            output, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert time.monotonic() - start < 10
    assert process.returncode == 128 + number, errors
    assert output == b""
    assert b"Traceback" not in errors
    return errors.decode().splitlines()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
def test_interrupted_wipe(attached: bool, number: signal.Signals, place: Place) -> None:
    """Ctrl-C or SIGTERM while a new payload is filled: it is gone, and there is no header."""
    new = place.folder / "new.img"
    before = contents(place.folder)
    header = None if attached else place.folder / "new.hdr"
    lines = interrupted(
        place.create(*SMALL, "--size", "8G", payload=new, header=header),
        lambda: new.exists() and new.stat().st_blocks,
        number,
    )
    assert lines == ["lukshdrfs: interrupted"]
    assert contents(place.folder) == before


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_interrupted_wipe_of_a_payload_that_was_there(number: signal.Signals, place: Place) -> None:
    """A payload that was there before stays, partly filled, which is said; there is no header for it."""
    payload, size = place.files.payload, 8 << 30
    os.truncate(payload, size)
    names = sorted(path.name for path in place.folder.iterdir())
    lines = interrupted(
        place.create(*SMALL, "--wipe", payload=payload, header=place.folder / "new.hdr"),
        lambda: payload.stat().st_blocks,
        number,
    )
    assert lines[-1] == "lukshdrfs: interrupted"
    assert len(lines) == 2
    assert "partly overwritten" in lines[0]
    assert payload.stat().st_size == size
    assert sorted(path.name for path in place.folder.iterdir()) == names


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_interrupted_key_derivation_of_create(number: signal.Signals, place: Place) -> None:
    """Ctrl-C or SIGTERM while the key is derived: the payload is gone, and there is no header."""
    new = place.folder / "new.img"
    before = contents(place.folder)
    lines = interrupted(
        place.create(*LONG, "--size", "1M", payload=new, header=place.folder / "new.hdr"), new.exists, number
    )
    assert lines == ["lukshdrfs: interrupted"]
    assert contents(place.folder) == before


@pytest.mark.root
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("command", ["add", "change"])
def test_interrupted_key_derivation_of_an_edit(command: str, number: signal.Signals, place: Place) -> None:
    """Ctrl-C or SIGTERM while a new key is derived: the header is as it was, and nobody has it locked."""
    files, new_key = place.files, place.new_key
    before = contents(place.folder)
    on: list[Argument] = ["--header", files.header, "--key-file", files.key_file, "--new-key-file", new_key]
    # it has worked for longer than it takes to start; the clock would measure the machine
    lines = interrupted(["key", command, *LONG, *on], lambda: cpu_seconds(daemons(place.folder)) > 1.0, number)
    assert lines == ["lukshdrfs: interrupted"]
    assert contents(place.folder) == before
    assert len(read_header(files.header).keyslots) == 1
    assert lukshdrfs("key", "add", *CHEAP, *on).returncode == 0
