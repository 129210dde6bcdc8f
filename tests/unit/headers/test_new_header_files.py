"""New header files: whole before their name is there, in nobody's place but the one they are to replace."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import struct
from pathlib import Path

import pytest
from support.edited import adding, after, empty
from support.storage_calls import failing, note_calls

from lukshdrfs.errors import DeviceError, InUse, PayloadError
from lukshdrfs.headers import new_file as new_header_file
from lukshdrfs.headers.new_file import create_header_file, replace_header_file

LUKS2 = after(empty(2, slots=2), adding(b"one"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return what is asked of the storage, in its order: writes with their offset, and fsyncs."""
    return note_calls(monkeypatch)


@pytest.fixture
def header(tmp_path: Path) -> Path:
    """Return a header file."""
    path = tmp_path / "header.img"
    path.write_bytes(LUKS2)
    path.chmod(0o600)
    return path


def beside(path: Path) -> list[str]:
    """Return what is in the folder."""
    return sorted(os.listdir(path.parent))


def test_a_new_header_file_appears_whole(tmp_path: Path, calls: list[tuple[str, int]]) -> None:
    """Its bytes are on the storage before it has its name, then the folder is; it is the owner's alone."""
    path = tmp_path / "new.img"
    create_header_file(path, LUKS2)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_nlink) == (LUKS2, 0o600, 1)
    assert beside(path) == ["new.img"]
    assert calls == [("write", 0), ("sync", -1), ("sync folder", -1)]


@pytest.mark.parametrize("how", ["link", "rename", "neither"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_nothing_is_replaced_by_a_new_header_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: str
) -> None:
    """Whatever the file system can do, a name that is taken stays what it is, and one that is free is had."""
    path, old = tmp_path / "old.img", tmp_path / "target"
    old.write_bytes(b"old")
    if kind == "file":
        path.write_bytes(b"old")
    else:
        path.symlink_to(tmp_path / "nowhere")
    if how != "link":
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    if how == "neither":
        monkeypatch.setattr(new_header_file._libc, "renameat2", lambda *_: refuse(errno.EINVAL))
    with pytest.raises(InUse, match=r"old\.img is there already"):
        create_header_file(path, LUKS2)
    assert beside(path) == ["old.img", "target"]
    assert path.is_symlink() == (kind == "link")
    create_header_file(tmp_path / "free.img", LUKS2)
    assert beside(path) == ["free.img", "old.img", "target"]
    assert (tmp_path / "free.img").read_bytes() == LUKS2


def refuse(code: int) -> int:
    """Answer as a system call of libc that fails."""
    ctypes.set_errno(code)
    return -1


def test_a_folder_that_cannot_take_the_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's reason is in the error, and nothing is left behind; a folder that knows no fsync is no reason."""
    fsync = os.fsync
    for code in (errno.EINVAL, errno.EIO):

        def folder_failing(descriptor: int, code: int = code) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", folder_failing)
        if code == errno.EINVAL:
            create_header_file(tmp_path / "one", LUKS2)
        else:
            with pytest.raises(PayloadError) as caught:
                create_header_file(tmp_path / "two", LUKS2)
            assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    monkeypatch.setattr(new_header_file._libc, "renameat2", lambda *_: refuse(errno.ENOSPC))
    with pytest.raises(PayloadError) as caught:
        create_header_file(tmp_path / "three", LUKS2)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(PayloadError) as caught:
        create_header_file(tmp_path / "none" / "four", LUKS2)
    assert caught.value.errno == errno.ENOENT
    assert beside(tmp_path / "x") == ["one", "two"]


def test_a_long_name_has_a_shorter_one_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of 255 bytes, in whatever encoding, is no hindrance; the temporary one begins with a dot and is random."""
    seen = []

    def token(count: int) -> str:
        seen.append(count)
        return "random"

    monkeypatch.setattr(secrets, "token_hex", token)
    path = tmp_path / os.fsdecode("ä".encode() * 127)
    create_header_file(path, b"x")
    assert seen == [8]
    assert beside(path) == [path.name]


def test_a_replaced_header_keeps_what_it_was(header: Path, calls: list[tuple[str, int]]) -> None:
    """Mode without execution, owner, the user's attributes and a link to it stay; its bytes are new, and synced."""
    header.chmod(0o751)
    os.setxattr(header, "user.mine", b"kept")
    link = header.with_name("link")
    link.symlink_to(header)
    with header.open("rb") as old:
        replace_header_file(link, b"new", old.fileno())
        assert old.read() == LUKS2
    assert link.is_symlink()
    assert (header.read_bytes(), stat.S_IMODE(header.stat().st_mode)) == (b"new", 0o640)
    assert os.getxattr(header, "user.mine") == b"kept"
    assert calls == [("write", 0), ("sync", -1), ("sync", -1), ("sync folder", -1)]
    assert beside(header) == ["header.img", "link"]


def test_a_header_that_is_another_one_meanwhile_is_not_replaced(header: Path) -> None:
    """Whoever has taken its name keeps it."""
    with header.open("rb") as old:
        header.unlink()
        header.write_bytes(b"theirs")
        with pytest.raises(DeviceError, match="somebody else"):
            replace_header_file(header, b"new", old.fileno())
        header.unlink()
        with pytest.raises(DeviceError, match="somebody else"):
            replace_header_file(header, b"new", old.fileno())
    assert beside(header) == []


ACL = "system.posix_acl_access"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return an access control list as the kernel has it (linux/posix_acl_xattr.h): tag, permissions, whose."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
OWNER, USER, GROUP, MASK, OTHER = 1, 2, 4, 16, 32


def test_a_replaced_headers_access_control_list_stays_without_execution(header: Path) -> None:
    """Whoever could read or write the old one can the new one; nobody may execute it."""
    rights = [(OWNER, 7, NOBODY), (USER, 5, 1234), (GROUP, 4, NOBODY), (MASK, 7, NOBODY), (OTHER, 1, NOBODY)]
    try:
        os.setxattr(header, ACL, acl(*rights))
    except OSError:
        pytest.skip("no access control lists here")
    with header.open("rb") as old:
        replace_header_file(header, b"new", old.fileno())
    assert os.getxattr(header, ACL) == acl(*((tag, bits & 6, whose) for tag, bits, whose in rights))


@pytest.mark.parametrize("call", ["fchown", "setxattr", "removexattr", "getxattr"])
def test_a_header_whose_rights_cannot_be_kept_is_its_owners_alone(
    header: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """Where owner, group or list cannot be had, the new file has mode 0600, which is told if it was another."""
    header.chmod(0o644)
    if call == "setxattr":
        monkeypatch.setattr(new_header_file, "_acl", lambda _: acl((OWNER, 6, NOBODY)))
    if call == "fchown":
        fstat = os.fstat
        inode = header.stat().st_ino

        def foreign(descriptor: int) -> os.stat_result:
            found = fstat(descriptor)
            return os.stat_result((*found[:4], found[4] + (found.st_ino == inode), *found[5:]))

        monkeypatch.setattr(os, "fstat", foreign)
    monkeypatch.setattr(os, call, failing(errno.EPERM))
    with header.open("rb") as old:
        replace_header_file(header, b"new", old.fileno())
    monkeypatch.undo()
    assert (header.read_bytes(), stat.S_IMODE(header.stat().st_mode)) == (b"new", 0o600)
    assert "owner and mode cannot be kept" in caplog.text


@pytest.mark.parametrize("code", [errno.ENODATA, errno.EOPNOTSUPP])
def test_a_file_system_without_lists_or_attributes_is_fine(
    header: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """The mode is kept all the same, and there is nothing to tell."""
    header.chmod(0o640)
    for call in ("getxattr", "removexattr", "setxattr", "listxattr"):
        monkeypatch.setattr(os, call, failing(code))
    with header.open("rb") as old:
        replace_header_file(header, b"new", old.fileno())
    assert stat.S_IMODE(header.stat().st_mode) == 0o640
    assert caplog.text == ""


def test_only_the_users_attributes_and_the_label_are_copied(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capabilities never are; one that cannot be had does not keep the others away."""
    copied = {}
    monkeypatch.setattr(new_header_file, "_acl", lambda _: None)
    names = ["user.a", "security.capability", "user.lost", "security.selinux", "trusted.x", "user.b"]
    monkeypatch.setattr(os, "listxattr", lambda _: names)

    def get(_descriptor: int, name: str) -> bytes:
        if name == "user.lost":
            raise OSError(errno.ENODATA, "gone")
        return name.encode()

    monkeypatch.setattr(os, "getxattr", get)
    monkeypatch.setattr(os, "setxattr", lambda _descriptor, name, value: copied.update({name: value}))
    with header.open("rb") as old:
        replace_header_file(header, b"new", old.fileno())
    assert copied == {name: name.encode() for name in ("user.a", "security.selinux", "user.b")}
