"""cryptsetup's lock on a device's header, a file in a folder of root's; and hearing of a header that is gone."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import wait_until

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.headers import lock as module
from lukshdrfs.headers import presence as header_presence
from lukshdrfs.headers.lock import header_lock
from lukshdrfs.headers.presence import HeaderPresence

DEVICE = os.makedev(7, 300)
LOCK_NAME = "L_7:300"
"""cryptsetup, lib/utils_device_locking.c, `resource_by_devno`."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return cryptsetup's folder, which is not there yet."""
    monkeypatch.setattr(module, "LOCK_FOLDER", tmp_path / "cryptsetup")
    monkeypatch.setattr(module, "LOCK_PATIENCE_S", 0.1)
    return tmp_path / "cryptsetup"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Return a descriptor of what is told to be a block device."""
    fstat = os.fstat
    descriptor = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)

    def block_device(which: int) -> os.stat_result:
        found = fstat(which)
        if which != descriptor:
            return found
        reduced = found.__reduce__()  # Python 3.13 takes no name that a number stands for
        assert isinstance(reduced, tuple)
        numbers, others = reduced[1]
        return os.stat_result((stat.S_IFBLK | 0o600, *numbers[1:]), others | {"st_rdev": DEVICE})

    monkeypatch.setattr(os, "fstat", block_device)
    yield descriptor
    os.close(descriptor)


def is_free(path: Path, *, for_reading: bool) -> bool:
    """Tell whether another program could have a lock now."""
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if for_reading else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def open_files() -> int:
    """Count this process's descriptors."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_devices_lock_is_a_file_of_its_number(folder: Path, device: int, *, exclusive: bool) -> None:
    """It is there and locked meanwhile, the owner's alone, and gone afterwards; the device itself is not locked."""
    before = open_files()
    with header_lock(device, "dev", exclusive=exclusive):
        assert os.listdir(folder) == [LOCK_NAME]
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / LOCK_NAME)] == [0o700, 0o600]
        assert not is_free(folder / LOCK_NAME, for_reading=False)
        assert is_free(folder / LOCK_NAME, for_reading=True) != exclusive
        assert is_free(Path(f"/proc/self/fd/{device}"), for_reading=False)
    assert os.listdir(folder) == []
    assert open_files() == before


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_file_is_locked_itself(folder: Path, tmp_path: Path, *, exclusive: bool) -> None:
    """A header file needs no folder; afterwards it is free."""
    path = tmp_path / "header"
    path.touch()
    with path.open("rb") as stream:
        with header_lock(stream.fileno(), "h", exclusive=exclusive):
            assert not is_free(path, for_reading=False)
            assert is_free(path, for_reading=True) != exclusive
        assert is_free(path, for_reading=False)
    assert not folder.exists()


def test_a_device_that_another_program_edits_is_in_use(folder: Path, device: int) -> None:
    """It is waited for as long as there is patience; its lock file stays, for it is not ours."""
    folder.mkdir(mode=0o700)
    (folder / LOCK_NAME).touch()
    before = open_files()
    with (folder / LOCK_NAME).open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        start = time.monotonic()
        with pytest.raises(InUse, match="header dev is being edited"), header_lock(device, "dev", exclusive=False):
            pytest.fail("another program has it")
        assert time.monotonic() - start >= 0.1
    assert (folder / LOCK_NAME).exists()
    assert open_files() == before


def test_a_lock_file_that_others_share_stays(folder: Path, device: int) -> None:
    """Who still reads has it locked, so it is not taken away from under them."""
    with header_lock(device, "dev", exclusive=False), (folder / LOCK_NAME).open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        other = os.dup(stream.fileno())
    assert os.listdir(folder) == [LOCK_NAME]
    os.close(other)


def test_a_lock_file_that_was_removed_meanwhile_counts_for_nothing(
    folder: Path, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked, it is compared with what has the name; the next one is tried, and what has the name now is removed."""
    wait = module._wait_for
    removed: list[int] = []

    def wait_and_lose(descriptor: int, name: str, operation: int) -> None:
        wait(descriptor, name, operation)
        if len(removed) < 2:
            removed.append(os.fstat(descriptor).st_ino)
            (folder / LOCK_NAME).unlink()
            if len(removed) == 2:
                (folder / LOCK_NAME).touch()

    monkeypatch.setattr(module, "_wait_for", wait_and_lose)
    before = open_files()
    with header_lock(device, "dev", exclusive=True):
        assert not is_free(folder / LOCK_NAME, for_reading=True)
        (folder / LOCK_NAME).rename(folder / "old")
        (folder / LOCK_NAME).touch()
    assert sorted(os.listdir(folder)) == [LOCK_NAME, "old"], "that is another one's"
    assert open_files() == before


@pytest.mark.parametrize("kind", ["group", "others", "link", "file", "foreign"])
def test_without_a_safe_folder_a_device_is_locked_itself(
    folder: Path, device: int, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A folder that others could act in, or that is none, is not used; there is a lock all the same."""
    if kind == "file":
        folder.touch()
    elif kind == "link":
        folder.with_name("elsewhere").mkdir(mode=0o700)
        folder.symlink_to(folder.with_name("elsewhere"))
    else:
        folder.mkdir()
        folder.chmod({"group": 0o720, "others": 0o702, "foreign": 0o700}[kind])
        if kind == "foreign":
            if os.geteuid() != 0:
                pytest.skip("only root gives files away")
            os.chown(folder, 12345, -1)
    before = open_files()
    with header_lock(device, "dev", exclusive=True):
        assert not is_free(Path(f"/proc/self/fd/{device}"), for_reading=True)
    if kind != "file":
        assert os.listdir(folder) == []
    assert open_files() == before


def test_a_file_system_without_locks_is_edited_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What flock(2) cannot do there is no reason to refuse; that a signal came, or another has it, is one to go on."""
    answers = [errno.EINTR, errno.EAGAIN, errno.ENOLCK, errno.EBADF]

    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(answers.pop(0), "")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(time, "sleep", lambda seconds: time.monotonic() + seconds)
    with (tmp_path / "h").open("wb") as stream, header_lock(stream.fileno(), "h", exclusive=True):
        assert answers == [errno.EBADF]
    assert answers == []


# --- gone ------------------------------------------------------------------------------------------------------------


class Watching:
    """A thread that waits for a header to go."""

    def __init__(self, path: Path) -> None:
        self.presence = HeaderPresence(str(path))
        self.answers: list[bool] = []
        self.thread = threading.Thread(target=lambda: self.answers.append(self.presence.wait_gone()))
        self.thread.start()

    def answer(self) -> bool:
        self.thread.join(20)
        [found] = self.answers
        return found

    def cancel(self) -> None:
        self.presence.cancel()


@pytest.fixture
def header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a header file two folders down, on a file system that counts as one without a device."""
    monkeypatch.setattr(header_presence, "_medium_is_there", lambda _device: True)
    path = tmp_path / "a" / "b" / "header"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.mark.parametrize("what", ["removed", "renamed", "folder renamed", "folder above renamed", "made a folder"])
def test_a_header_that_goes_is_heard_of(header: Path, what: str) -> None:
    """Whether it is removed, or it or a folder on the way gets another name; nothing stays open."""
    before = open_files()
    watching = Watching(header)
    if what in ("removed", "made a folder"):
        header.unlink()
        if what == "made a folder":
            header.mkdir()
    elif what == "renamed":
        header.rename(header.with_name("other"))
    else:
        folder = header.parent if what == "folder renamed" else header.parent.parent
        folder.rename(folder.with_name("moved"))
    assert watching.answer() is True
    watching.cancel()
    assert open_files() == before


def test_a_header_that_is_still_there_is_waited_for(header: Path) -> None:
    """Writing, links, and another file that is put in its place do not end the wait; `cancel` does."""
    watching = Watching(header)
    header.write_bytes(b"written")
    header.with_name("new").touch()
    os.link(header, header.with_name("link"))
    header.with_name("link").unlink()
    header.with_name("new").replace(header)
    header.chmod(0o600)
    watching.thread.join(0.1)
    assert watching.thread.is_alive()
    watching.cancel()
    assert watching.answer() is False
    again = Watching(header)
    header.with_name("new").touch()
    header.with_name("new").replace(header)
    header.unlink()
    assert again.answer() is True, "the file that was put there is watched, too"
    again.cancel()


def test_what_is_not_there_is_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, or what is neither file nor device, is refused by name; so is it where the kernel watches no more."""
    for path in (tmp_path / "none", tmp_path, Path("/dev/null")):
        with pytest.raises(DeviceError, match=f"header {path} is not there"):
            HeaderPresence(str(path))
    (tmp_path / "header").touch()
    monkeypatch.setattr(header_presence, "_medium_is_there", lambda _device: False)
    with pytest.raises(DeviceError, match="is not there"):
        HeaderPresence(str(tmp_path / "header"))
    monkeypatch.setattr(header_presence, "_medium_is_there", lambda _device: True)

    class Libc:
        @staticmethod
        def inotify_init1(flags: int) -> int:
            assert flags == os.O_CLOEXEC | os.O_NONBLOCK
            header_presence.ctypes.set_errno(errno.EMFILE)  # type: ignore[attr-defined]
            return -1

    monkeypatch.setattr(header_presence, "_libc", Libc)
    with pytest.raises(DeviceError, match=f"{os.strerror(errno.EMFILE)}.*max_user_instances"):
        HeaderPresence(str(tmp_path / "header"))


def test_a_device_is_there_while_it_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a medium, or that sysfs does not know, is gone; a file system without a device never is."""
    sizes = {"/sys/dev/block/8:1/size": "2048\n", "/sys/dev/block/8:2/size": "0\n", "/sys/dev/block/8:3/size": "x\n",
             "/sys/dev/block/8:4/size": "1\n"}  # fmt: skip

    def read_text(path: Path, encoding: str) -> str:
        assert encoding == "ascii"
        if str(path) not in sizes:
            raise FileNotFoundError(path)
        return sizes[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    for minor, there in ((1, True), (2, False), (3, False), (4, True), (5, False)):
        assert header_presence._device_is_there(os.makedev(8, minor)) is there
        assert header_presence._medium_is_there(os.makedev(8, minor)) is there
    assert header_presence._medium_is_there(os.makedev(0, 99))


def test_uevents_that_cannot_be_heard_are_done_without(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where netlink is not allowed, files are watched all the same."""

    def refuse(*_arguments: object) -> object:
        raise PermissionError(errno.EPERM, "")

    pair = header_presence.socket.socketpair()  # type: ignore[attr-defined]
    monkeypatch.setattr(header_presence.socket, "socketpair", lambda: pair)  # type: ignore[attr-defined]
    monkeypatch.setattr(header_presence.socket, "socket", refuse)  # type: ignore[attr-defined]
    watching = Watching(header)
    header.unlink()
    assert watching.answer() is True
    watching.cancel()
    wait_until(lambda: pair[0].fileno() < 0 and pair[1].fileno() < 0, "both ends are closed")


def test_uevents_are_a_reason_to_look_and_nothing_more(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one is taken off the socket and the header looked at once; without any, nobody looks."""
    ours, kernel = socket.socketpair()
    monkeypatch.setattr(header_presence, "_open_uevents", lambda: ours)
    looks: list[str] = []
    look = HeaderPresence._look

    def counting(self: HeaderPresence) -> tuple[str, int] | None:
        looks.append("")
        return look(self)

    monkeypatch.setattr(HeaderPresence, "_look", counting)
    watching = Watching(header)
    wait_until(lambda: len(looks) == 2, "it waits")
    kernel.send(b"change@/devices/x")
    wait_until(lambda: len(looks) >= 3, "it has looked")
    kernel.send(b"change@/devices/x")
    wait_until(lambda: len(looks) >= 4, "it has looked again")
    watching.thread.join(0.05)
    assert len(looks) < 10
    monkeypatch.setattr(HeaderPresence, "_look", lambda _self: None)
    kernel.send(b"remove@/devices/x")
    assert watching.answer() is True
    watching.cancel()
    assert ours.fileno() < 0
    kernel.close()
