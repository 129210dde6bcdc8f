"""
Everything that a user can get wrong.

Each case has its exit code and its one line; nothing is mounted, nothing is changed, nothing keeps running.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support import luks2_edit
from support.cryptsetup import LUKS1_XTS, LuksFiles
from support.devices import loop_device
from support.files import digest
from support.mounts import (
    LUKSHDRFS,
    Argument,
    Mounted,
    fuse_mounts,
    fusermount,
    is_mounted,
    lukshdrfs,
    without_override,
)
from support.namespaces import LEAVE_FOREIGN_MOUNTS
from support.processes import daemons
from support.tools import program, require
from support.volumes import MIB, MakeVolume

pytestmark = [pytest.mark.needs("fuse", "cryptsetup")]


@dataclasses.dataclass
class Attempt:
    """A mount that a case spoils before it is made."""

    files: LuksFiles
    mountpoint: Path
    make_volume: MakeVolume
    stack: contextlib.ExitStack
    options: list[Argument] = dataclasses.field(default_factory=list)
    command: Sequence[Argument] = ()
    with_header: bool = True

    @property
    def arguments(self) -> list[Argument]:
        header: list[Argument] = ["--header", self.files.header] if self.with_header else []
        arguments: list[Argument] = ["mount"]
        return [
            *arguments, *header, "--key-file", self.files.key_file, *self.options, self.files.payload,
            self.mountpoint,
        ]  # fmt: skip

    def edit_header(self, change: Callable[[luks2_edit.Json], object]) -> None:
        luks2_edit.edit(self.files.header, change)


Spoil = Callable[[Attempt], object]
CASES: dict[str, tuple[int, Spoil]] = {}
"""By name: the exit code, and what spoils the attempt."""


def case(name: str, code: int) -> Callable[[Spoil], Spoil]:
    """Add a case."""

    def add(spoil: Spoil) -> Spoil:
        assert name not in CASES
        CASES[name] = (code, spoil)
        return spoil

    return add


def cases(code: int, spoils: dict[str, Spoil]) -> None:
    """Add several short cases with the same exit code."""
    for name, spoil in spoils.items():
        case(name, code)(spoil)


def steps(*spoils: Spoil) -> Spoil:
    """Do one thing after the other."""

    def spoil_all(it: Attempt) -> None:
        for spoil in spoils:
            spoil(it)

    return spoil_all


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def without_privilege(attempt: Attempt) -> None:
    """Have the program run as an owner to whom a file's mode matters, which it does not to root."""
    attempt.command = without_override()


def in_namespace(attempt: Attempt, script: str) -> None:
    """Have the program run where `script` has changed what is mounted, for it alone."""
    require(["unshare", "root"])
    whole = f'set -e; {LEAVE_FOREIGN_MOUNTS}; {script}; exec "$0" "$@"'
    attempt.command = [program("unshare"), "--mount", "sh", "-c", whole, LUKSHDRFS]


# --- secrets ----------------------------------------------------------------------------------------------------

cases(
    2,
    {
        "wrong key": lambda it: it.files.key_file.write_bytes(b"wrong"),
        "empty key": lambda it: it.files.key_file.write_bytes(b""),
        "right key and a newline": lambda it: it.files.key_file.write_bytes(it.files.secret + b"\n"),
    },
)
cases(
    4,
    {
        "key file missing": lambda it: it.files.key_file.unlink(),
        "key file a directory": steps(lambda it: it.files.key_file.unlink(), lambda it: it.files.key_file.mkdir()),
    },
)


@case("key file too long", 1)
def _(it: Attempt) -> None:
    cut(it.files.key_file, 8 * MIB + 1)


# --- header -----------------------------------------------------------------------------------------------------


def luks1(it: Attempt) -> None:
    """Let it be a LUKS1 volume."""
    it.files = it.make_volume(LUKS1_XTS)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def no_header(it: Attempt) -> None:
    it.with_header = False


cases(
    4,
    {
        "no header": no_header,
        "header missing": lambda it: it.files.header.unlink(),
        "header a directory": steps(lambda it: it.files.header.unlink(), lambda it: it.files.header.mkdir()),
        "header empty": lambda it: cut(it.files.header, 0),
        "header a single byte": lambda it: cut(it.files.header, 1),
        "header cut in its first block": lambda it: cut(it.files.header, 512),
        "header cut in its metadata": lambda it: cut(it.files.header, 10_000),
        "header cut after its metadata": lambda it: cut(it.files.header, 32_768),
        "header cut in its keyslots": lambda it: cut(it.files.header, 100_000),
        "header zeroed": lambda it: it.files.header.write_bytes(bytes(MIB)),
        "header random": lambda it: it.files.header.write_bytes(os.urandom(MIB)),
        "header with magic and random": lambda it: it.files.header.write_bytes(
            b"LUKS\xba\xbe\x00\x02" + os.urandom(MIB)
        ),
        "LUKS1 header with magic and random": lambda it: it.files.header.write_bytes(
            b"LUKS\xba\xbe\x00\x01" + os.urandom(MIB)
        ),
        "LUKS1 header cut": steps(luks1, lambda it: cut(it.files.header, 592)),
        "LUKS1 header cut in its table": steps(luks1, lambda it: cut(it.files.header, 300)),
        "LUKS1 header with unknown cipher": steps(luks1, lambda it: patch(it.files.header, 8, b"rot13\0")),
        "LUKS1 header with null cipher": steps(luks1, lambda it: patch(it.files.header, 8, b"cipher_null\0")),
        "LUKS1 header with unknown mode": steps(luks1, lambda it: patch(it.files.header, 40, b"foo-plain\0")),
        "LUKS1 header with unknown hash": steps(luks1, lambda it: patch(it.files.header, 72, b"md4711\0")),
        "LUKS1 header with unending cipher": steps(luks1, lambda it: patch(it.files.header, 8, b"a" * 32)),
    },
)


def segment(**changes: object) -> Spoil:
    return lambda it: it.edit_header(lambda found: found["segments"]["0"].update(changes))


def keyslot_area(**changes: object) -> Spoil:
    return lambda it: it.edit_header(lambda found: found["keyslots"]["0"]["area"].update(changes))


def required(*names: str) -> Spoil:
    return lambda it: it.edit_header(lambda found: found["config"].update(requirements={"mandatory": [*names]}))


cases(
    4,
    {
        "unknown cipher": segment(encryption="rot13-xts-plain64"),
        "unknown mode": segment(encryption="aes-foo-plain64"),
        "unknown IV": segment(encryption="aes-xts-foo"),
        "null cipher": segment(encryption="cipher_null-ecb"),
        "capi cipher": segment(encryption="capi:xts(aes)-plain64"),
        "empty cipher": segment(encryption=""),
        "null keyslot cipher": keyslot_area(encryption="cipher_null-ecb"),
        "integrity": segment(integrity={"type": "hmac(sha256)", "journal_encryption": "none",
                                        "journal_integrity": "none"}),
        "unknown segment type": segment(type="foo"),
        "unknown requirement": required("from-the-future"),
        "reencryption": required("online-reencrypt-v2"),
        "offline reencryption": required("offline-reencrypt"),
        "two requirements": required("opal", "inline-hw-tags"),
        "segment longer than payload": segment(size=str(8 * MIB)),
        "segment behind payload's end": segment(offset=str(8 * MIB)),
        "segment at payload's end": segment(offset=str(4 * MIB)),
        "segment where no file can end": segment(offset=str((1 << 64) - 4096)),
        "segment of no size": segment(size="0"),
        "segment off sectors": segment(offset="512"),
        "lone segment with another IV offset": segment(iv_tweak="8"),
        "sector size of no kind": segment(sector_size=8192),
        "keyslot area outside": keyslot_area(offset=str(1 << 40)),
        "keyslot area in the metadata": keyslot_area(offset="4096"),
    },
)  # fmt: skip


@case("LUKS1 payload shorter than offset", 4)
def _(it: Attempt) -> None:
    luks1(it)
    patch(it.files.header, 104, (4 * MIB // 512).to_bytes(4, "big"))


@case("header of an attached volume, payload too short", 4)
def _(it: Attempt) -> None:
    it.edit_header(lambda found: found["segments"]["0"].update(offset=str(16 * MIB)))


# --- payload ----------------------------------------------------------------------------------------------------

cases(
    4,
    {
        "payload missing": lambda it: it.files.payload.unlink(),
        "payload empty": lambda it: cut(it.files.payload, 0),
        "payload a byte": lambda it: cut(it.files.payload, 1),
        "payload shorter than a sector": lambda it: cut(it.files.payload, 4095),
        "payload a directory": steps(lambda it: it.files.payload.unlink(), lambda it: it.files.payload.mkdir()),
        "payload a pipe": steps(lambda it: it.files.payload.unlink(), lambda it: os.mkfifo(it.files.payload)),
        "payload a character device": steps(
            lambda it: it.files.payload.unlink(), lambda it: it.files.payload.symlink_to("/dev/null")
        ),
        "payload unreadable": steps(without_privilege, lambda it: it.files.payload.chmod(0)),
        "payload read-only": steps(without_privilege, lambda it: it.files.payload.chmod(0o400)),
        "header unreadable": steps(without_privilege, lambda it: it.files.header.chmod(0)),
        "key unreadable": steps(without_privilege, lambda it: it.files.key_file.chmod(0)),
    },
)  # fmt: skip


def under_another_name(it: Attempt) -> None:
    link = it.files.payload.with_name("link.img")
    link.hardlink_to(it.files.payload)
    it.files = dataclasses.replace(it.files, payload=link)


def elsewhere(it: Attempt, *options: str) -> Mounted:
    """Have the payload mounted at another place."""
    mount = Mounted(it.files.payload, *options, header=it.files.header, key_file=it.files.key_file)
    return it.stack.enter_context(mount)


def second_volume_at(it: Attempt) -> None:
    """Have another volume mounted where this one shall be."""
    other = it.make_volume()
    it.stack.enter_context(
        Mounted(other.payload, header=other.header, key_file=other.key_file, mountpoint=it.mountpoint)
    )


cases(
    5,
    {
        "payload in use": elsewhere,
        "payload being read": lambda it: elsewhere(it, "--read-only"),
        "payload in use, to be read": steps(elsewhere, lambda it: it.options.append("--read-only")),
        "mountpoint in use": second_volume_at,
        "payload under another name in use": steps(elsewhere, under_another_name),
    },
)


def on_device(*options: str) -> Spoil:
    """Have the payload on a loop device."""

    def attach(it: Attempt) -> None:
        require(["loop"])
        device = it.stack.enter_context(loop_device(it.files.payload, *options))
        it.files = dataclasses.replace(it.files, payload=Path(device))

    return attach


def taken(it: Attempt) -> None:
    """Have the payload's device open as a mounted file system has it."""
    descriptor = os.open(it.files.payload, os.O_RDONLY | os.O_EXCL)
    it.stack.callback(os.close, descriptor)


case("payload a read-only device", 4)(on_device("--read-only"))
case("payload a device in use", 5)(steps(on_device(), taken))


# --- mountpoint and machine -------------------------------------------------------------------------------------

cases(
    4,
    {
        "mountpoint missing": lambda it: it.mountpoint.rmdir(),
        "mountpoint below nothing": lambda it: setattr(it, "mountpoint", it.mountpoint / "a" / "b"),
        "mountpoint not empty": lambda it: (it.mountpoint / "file").write_bytes(b"kept"),
        "no /dev/fuse": lambda it: in_namespace(
            it,
            "mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/zero c 1 5; "
            "mknod /dev/urandom c 1 9; mknod /dev/random c 1 8",
        ),
        "/dev/fuse is another device": lambda it: in_namespace(it, "mount --bind /dev/null /dev/fuse"),
    },
)


# --- options ----------------------------------------------------------------------------------------------------


def option(*words: str) -> Spoil:
    return lambda it: it.options.extend(words)


cases(
    1,
    {
        "unknown mount option": option("-o", "no-such-option"),
        "unknown data path": option("--data-path", "none"),
        "name with a slash": option("--name", "a/b"),
        "name of the directory": option("--name", ".."),
        "no name": option("--name", ""),
        "unused keyslot": option("--key-slot", "5"),
        "keyslot out of range": option("--key-slot", "99"),
        "no number": option("--keyfile-offset", "x"),
        "negative number": option("--keyfile-size", "-1"),
    },
)


@pytest.fixture
def attempt(volume: LuksFiles, make_volume: MakeVolume, tmp_path: Path) -> Iterator[Attempt]:
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    with contextlib.ExitStack() as stack:
        yield Attempt(volume, mountpoint, make_volume, stack)
        # an attempt that should have failed, and did not, holds what the stack is about to take away
        if is_mounted(mountpoint):
            fusermount(mountpoint, lazily=True)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, attempt: Attempt, tmp_path: Path) -> None:
    """One line says what is wrong, the exit code says of which kind, and everything is as it was."""
    code, spoil = CASES[name]
    spoil(attempt)
    paths = [attempt.files.payload, attempt.files.header]
    before = [digest(path) for path in paths]
    mounts, running = fuse_mounts(tmp_path), daemons(attempt.mountpoint)

    done = lukshdrfs(*attempt.arguments, command=attempt.command)

    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if code != 1:  # a usage error may show the usage too
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.strip()
    assert "correct horse" not in done.stderr
    assert fuse_mounts(tmp_path) == mounts
    assert daemons(attempt.mountpoint) == running
    assert [digest(path) for path in paths] == before


def test_attempt_mounts_when_nothing_spoils_it(attempt: Attempt) -> None:
    """The cases fail for their own reasons: without one, the attempt succeeds."""
    done = lukshdrfs(*attempt.arguments)
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", attempt.mountpoint).returncode == 0


@pytest.mark.parametrize("name", ["payload read-only"])
def test_readable_payload_mounts_read_only(name: str, attempt: Attempt) -> None:
    """A payload that may only be read can be mounted when only reading is asked for."""
    CASES[name][1](attempt)
    attempt.options.append("--read-only")

    done = lukshdrfs(*attempt.arguments, command=attempt.command)
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", attempt.mountpoint).returncode == 0


HOSTILE_COSTS: dict[str, dict[str, object]] = {
    "memory": {"type": "argon2id", "time": 4, "memory": (1 << 32) - 1, "cpus": 4},
    "passes": {"type": "argon2id", "time": (1 << 32) - 1, "memory": 65536, "cpus": 4},
    "lanes": {"type": "argon2id", "time": 4, "memory": 65536, "cpus": 1 << 20},
    "iterations": {"type": "pbkdf2", "hash": "sha256", "iterations": (1 << 32) - 1},
}


@pytest.mark.parametrize("cost", HOSTILE_COSTS)
def test_hostile_key_derivation(cost: str, attempt: Attempt) -> None:
    """A header cannot make us work for ever or take all memory: its costs are checked before they are paid."""
    attempt.edit_header(
        lambda found: found["keyslots"]["0"].update(
            kdf={**HOSTILE_COSTS[cost], "salt": found["keyslots"]["0"]["kdf"]["salt"]}
        )
    )

    done = lukshdrfs(*attempt.arguments, timeout=20)
    assert done.returncode in {3, 4}, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_other_secondary_header_is_a_warning(attempt: Attempt) -> None:
    """A damaged first copy of the metadata is no reason to stop: the second is used, the file stays as it is."""
    header = attempt.files.header
    patch(header, 4096, b"damaged")
    before = digest(header)

    done = lukshdrfs(*attempt.arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip()  # a warning
    assert lukshdrfs("unmount", attempt.mountpoint).returncode == 0
    assert digest(header) == before


def test_unusable_arguments(attempt: Attempt) -> None:
    """What makes no sense is a usage error."""
    for arguments in (
        ["mount"],
        ["mount", "one"],
        ["no-such-command"],
        ["mount", "--no-such-option", "a", "b"],
        [],
    ):
        done = lukshdrfs(*arguments)
        assert done.returncode == 1, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_shadowed_mountpoint_keeps_its_file(attempt: Attempt) -> None:
    """What lies in a mountpoint that is not empty stays."""
    kept = attempt.mountpoint / "file"
    kept.write_bytes(b"kept")

    assert lukshdrfs(*attempt.arguments).returncode == 4
    assert kept.read_bytes() == b"kept"


# --- create -----------------------------------------------------------------------------------------------------

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


def test_create_overwrites_nothing(attempt: Attempt) -> None:
    """Neither a header nor a payload with recognisable data is overwritten without --force."""
    files = attempt.files
    before = digest(files.header), digest(files.payload)
    done = lukshdrfs("create", *CHEAP, "--header", files.header, "--key-file", files.key_file, files.payload)
    assert done.returncode in {4, 5}, done.stderr
    assert (digest(files.header), digest(files.payload)) == before

    fresh = files.header.with_name("fresh.img")
    files.payload.write_bytes(files.header.read_bytes().ljust(4 * MIB, b"\0"))
    before = digest(files.header), digest(files.payload)
    done = lukshdrfs("create", *CHEAP, "--header", fresh, "--key-file", files.key_file, files.payload)
    assert done.returncode in {4, 5}, done.stderr
    assert (digest(files.header), digest(files.payload)) == before
    assert not fresh.exists()


def test_create_without_payload_leaves_no_header(attempt: Attempt) -> None:
    """A payload that does not exist and has no size given is missing; nothing half-made remains."""
    files = attempt.files
    fresh, missing = files.header.with_name("fresh.img"), files.payload.with_name("missing.img")
    done = lukshdrfs("create", *CHEAP, "--header", fresh, "--key-file", files.key_file, missing)

    assert done.returncode == 4, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in fresh.parent.iterdir()) == ["header.img", "key", "payload.img"]


def test_create_keeps_size_of_payload(attempt: Attempt) -> None:
    """An existing payload keeps its size, and its sector size fits that."""
    files = attempt.files
    files.header.unlink()
    os.truncate(files.payload, MIB + 512)
    done = lukshdrfs("create", *CHEAP, "--header", files.header, "--key-file", files.key_file, files.payload)

    assert done.returncode == 0, done.stderr
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        assert mount.image.stat().st_size == MIB + 512
    assert files.payload.stat().st_size == MIB + 512
