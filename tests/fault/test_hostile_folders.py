"""
A header whose folder others can act in, or whose mode somebody else has chosen.

Whatever they put there, nobody gets another's rights by it, and nothing outside the folder is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, LuksFiles
from support.mounts import Argument, lukshdrfs
from support.ordinary_user import NUMBER, SOMEBODY_ELSE, OrdinaryUser, ordinary_user
from support.volumes import MakeVolume

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.headers import create_header_file, replace_header_file
from lukshdrfs.headers import new_file as new_header_file
from lukshdrfs.payload import write_all

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
OWNER, USER, GROUP, MASK, OTHER = 1, 2, 4, 0x10, 0x20


def restoring(files: LuksFiles) -> list[Argument]:
    """Return the command that puts a backup in the header's place."""
    backup, kept = files.header.parent.parent / "backup.img", files.header.parent.parent / "kept.img"
    shutil.copyfile(files.header, backup)
    backup.chmod(0o644)
    kept.unlink(missing_ok=True)
    return ["header", "restore", "--header", files.header, "--keep", kept, backup]


def converting(files: LuksFiles) -> list[Argument]:
    return ["header", "convert", "--header", files.header, "--type", "luks1"]


def creating(files: LuksFiles) -> list[Argument]:
    return [
        "create", "--force", *CHEAP, "--luks2-keyslots-size", "1M", "--key-file", files.key_file,
        "--header", files.header, files.payload,
    ]  # fmt: skip


WRITERS: dict[str, Callable[[LuksFiles], list[Argument]]] = {
    "restore": restoring,
    "convert": converting,
    "create": creating,
}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return an access control list as the kernel has it: tag, permissions, whose."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = (1 << 32) - 1


@pytest.fixture
def cheap(make_volume: MakeVolume) -> LuksFiles:
    return make_volume(XTS_512)


@pytest.mark.parametrize("mode", [0o4777, 0o2770, 0o1666, 0o7711, 0o7000, 0o640], ids=oct)
def test_of_a_mode_only_reading_and_writing_are_kept(mode: int, tmp_path: Path) -> None:
    """Whoever replaces a header keeps its bits for reading and writing: no set-user-ID, sticky or execute bit."""
    header = tmp_path / "header"
    header.write_bytes(b"old")
    with header.open("rb") as old:
        header.chmod(mode)
        replace_header_file(header, b"new", old.fileno())
    assert mode_of(header) == mode & 0o666


@pytest.mark.root
@pytest.mark.needs("cryptsetup")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_header_of_another_users_stays_its_own_when_root_replaces_it(writer: str, cheap: LuksFiles) -> None:
    """Root leaves owner and group, and no mode by which one acts as them."""
    os.chown(cheap.header, NUMBER, SOMEBODY_ELSE)
    cheap.header.chmod(0o6755)
    assert lukshdrfs(*WRITERS[writer](cheap)).returncode == 0
    status = cheap.header.stat()
    assert (status.st_uid, status.st_gid, mode_of(cheap.header)) == (NUMBER, SOMEBODY_ELSE, 0o644)


@pytest.mark.root
@pytest.mark.needs("cryptsetup")
def test_a_mode_that_a_stranger_has_chosen_is_not_taken_over(cheap: LuksFiles, tmp_path: Path) -> None:
    """Who may not leave the owner as it is gets a file of his own, mode 0600, and is told."""
    with ordinary_user(tmp_path) as user:
        shared, backup = user.home / "shared", user.home / "backup.img"
        shared.mkdir()
        shared.chmod(0o777)
        header = shared / "header.img"
        shutil.copyfile(cheap.header, backup)
        shutil.copyfile(cheap.header, header)
        backup.chmod(0o644)
        os.chown(header, SOMEBODY_ELSE, SOMEBODY_ELSE)
        header.chmod(0o4777)
        here = Path(sys.executable).with_name("lukshdrfs")
        done = user.run(here, "header", "restore", "--header", header, "--keep", user.home / "kept", backup)
        assert done.returncode == 0, done.stderr
        assert (header.stat().st_uid, mode_of(header)) == (NUMBER, 0o600)
        assert "owner" in done.stderr


@contextlib.contextmanager
def swapping(user: OrdinaryUser, prefix: str, target: Path) -> Iterator[subprocess.Popen[str]]:
    """Have a user put a link in the place of the first file in its home of a name that begins so, once it is there."""
    code = f"""
import ctypes, os, struct
libc = ctypes.CDLL(None)
watch = libc.inotify_init()
os.chdir({str(user.home)!r})
libc.inotify_add_watch(watch, b".", 0x100)  # IN_CREATE
print("watching", flush=True)
while data := os.read(watch, 65536):
    place = 0
    while place < len(data):
        length = struct.unpack_from("iIII", data, place)[3]
        name = data[place + 16 : place + 16 + length].rstrip(b"\\0")
        place += 16 + length
        if name.startswith({prefix.encode()!r}):
            try:
                os.rename(name, b"aside")
                os.symlink({str(target).encode()!r}, name)
            except OSError:
                continue
            print("swapped", flush=True)
            raise SystemExit
"""
    with subprocess.Popen([*user.command(), sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.root
@pytest.mark.needs("cryptsetup")
def test_a_link_in_the_place_of_the_new_file_is_not_followed(cheap: LuksFiles, tmp_path: Path) -> None:
    """A file that only root may touch keeps owner, mode and content, and the folder's header is the old or the new."""
    target = tmp_path / "only root's"
    target.write_bytes(b"only root's")
    target.chmod(0o600)
    with ordinary_user(tmp_path) as user:
        header = user.home / "header.img"
        backup = tmp_path / "backup.img"
        shutil.copyfile(cheap.header, backup)
        # large enough that there is time between making and naming it
        with backup.open("r+b") as stream:
            os.truncate(stream.fileno(), 2 * 16384 + (1 << 20))
        shutil.copyfile(cheap.header, header)
        os.chown(header, NUMBER, NUMBER)
        before = target.stat()
        with swapping(user, ".header.img.", target) as swapper:
            done = lukshdrfs("header", "restore", "--header", header, "--keep", tmp_path / "kept", backup)
            assert swapper.stdout is not None
            if done.returncode:
                assert swapper.stdout.readline() == "swapped\n"
                assert done.returncode == 4
                assert "somebody else" in done.stderr
        now = target.stat()
        assert (now.st_uid, now.st_mode, now.st_ctime_ns) == (before.st_uid, before.st_mode, before.st_ctime_ns)
        assert target.read_bytes() == b"only root's"
        assert header.is_file()
        assert not header.is_symlink()


@pytest.fixture
def swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a link in the place of every temporary file by the time it has been written; return where that leads."""
    target = tmp_path / "target"
    target.write_bytes(b"another's")
    target.chmod(0o600)
    folder = tmp_path / "folder"
    folder.mkdir()

    def written_and_swapped(descriptor: int, data: bytes, offset: int, what: str) -> None:
        write_all(descriptor, data, offset, what)
        for temporary in folder.glob(".header.*"):
            temporary.rename(folder / "aside")
            temporary.symlink_to(target)

    monkeypatch.setattr(new_header_file, "write_all", written_and_swapped)
    return target


@pytest.mark.parametrize("existing", [True, False])
def test_what_is_in_the_place_of_the_new_file_gets_no_name(existing: bool, swapped: Path, tmp_path: Path) -> None:
    """A link that is put in its place is neither followed nor renamed over a header that is there."""
    header = tmp_path / "folder" / "header"
    before = swapped.stat()
    if existing:
        header.write_bytes(b"old")
        with header.open("rb") as old, pytest.raises(DeviceError, match="somebody else"):
            replace_header_file(header, b"new", old.fileno())
        assert header.read_bytes() == b"old"
    else:
        with pytest.raises(DeviceError, match="somebody else"):
            create_header_file(header, b"new")
    now = swapped.stat()
    assert (now.st_mode, now.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)
    assert swapped.read_bytes() == b"another's"


def test_a_header_that_is_not_the_one_that_was_looked_at_is_not_replaced(tmp_path: Path) -> None:
    """What has taken the header's name since it was opened stays; nothing else is left."""
    header = tmp_path / "header"
    header.write_bytes(b"old")
    with header.open("rb") as old:
        header.rename(tmp_path / "aside")
        header.write_bytes(b"another's")
        with pytest.raises(DeviceError, match="somebody else"):
            replace_header_file(header, b"new", old.fileno())
    assert header.read_bytes() == b"another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside", "header"]


def test_a_new_header_is_not_made_through_a_link(tmp_path: Path) -> None:
    """A link that leads nowhere is not filled in: another may have put it there."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InUse):
        create_header_file(link, b"new")
    done = lukshdrfs("create", *CHEAP, "--header", link, "--size", "1M", tmp_path / "payload", stdin=b"a passphrase\n")
    assert done.returncode == 4
    assert str(link) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.needs("cryptsetup")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_to_a_header_stays_one(writer: str, cheap: LuksFiles, tmp_path: Path) -> None:
    """The file that it leads to is replaced, in its own folder."""
    real = tmp_path / "elsewhere" / "real.img"
    real.parent.mkdir()
    cheap.header.rename(real)
    cheap.header.symlink_to(real)
    before = real.stat()
    assert lukshdrfs(*WRITERS[writer](cheap)).returncode == 0
    assert cheap.header.readlink() == real
    assert real.stat().st_ino != before.st_ino
    assert mode_of(real) == 0o600
    kept = {"real.img.before"} if writer == "create" else set()  # --force keeps what it replaces
    assert {path.name for path in real.parent.iterdir()} == {"real.img"} | kept


def test_an_access_control_list_is_kept_without_its_rights_to_execute(tmp_path: Path) -> None:
    """Who could read the old header by a list can read the new one, and nobody else can."""
    header = tmp_path / "header"
    header.write_bytes(b"old")
    entries = [(OWNER, 7, NOBODY), (USER, 5, SOMEBODY_ELSE), (GROUP, 0, NOBODY), (MASK, 5, NOBODY), (OTHER, 0, NOBODY)]
    _set_attribute(header, ACL, acl(*entries))
    _set_attribute(header, "user.note", b"in the safe")
    with header.open("rb") as old:
        replace_header_file(header, b"new", old.fileno())
    assert header.read_bytes() == b"new"
    assert os.getxattr(header, ACL) == acl(*((tag, allowed & 6, whose) for tag, allowed, whose in entries))
    assert os.getxattr(header, "user.note") == b"in the safe"


def test_the_default_list_of_a_folder_opens_no_header(tmp_path: Path) -> None:
    """Whom a folder's default list lets in does not get at a header that is made or replaced there."""
    entries = [(OWNER, 7, NOBODY), (USER, 7, SOMEBODY_ELSE), (GROUP, 7, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY)]
    made, replaced = tmp_path / "made", tmp_path / "replaced"
    replaced.write_bytes(b"old")
    replaced.chmod(0o660)
    _set_attribute(tmp_path, DEFAULT_ACL, acl(*entries))
    create_header_file(made, b"new")
    with replaced.open("rb") as old:
        replace_header_file(replaced, b"new", old.fileno())
    assert mode_of(made) == 0o600
    assert mode_of(replaced) == 0o660
    assert ACL not in os.listxattr(replaced)


def _set_attribute(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"no {name} here: {error}")


def test_a_long_name_has_room_for_its_temporary_one(tmp_path: Path) -> None:
    """A header may have the longest name that a folder takes."""
    header = tmp_path / ("ä" * 127)
    create_header_file(header, b"first")
    with header.open("rb") as old:
        replace_header_file(header, b"second", old.fileno())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"second"]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a name cannot be linked the file is renamed, over nothing that is there."""

    def no_links(*_arguments: object, **_options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    header = tmp_path / "header"
    create_header_file(header, b"first")
    with pytest.raises(InUse):
        create_header_file(header, b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]
