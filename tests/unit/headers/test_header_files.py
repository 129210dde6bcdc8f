"""Headers in files: written whole or step by step, on their storage in time, and put back where that fails."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.edited import adding, after, changing, empty, opened
from support.storage_calls import failing, note_calls

from lukshdrfs.errors import DeviceError, HeaderError, InUse, OutOfMemory, PayloadError
from lukshdrfs.headers import file as module
from lukshdrfs.headers.file import locked_for_writing, open_for_writing, open_header
from lukshdrfs.headers.lock import header_lock
from lukshdrfs.luks.edit import HeaderEdit, Write
from lukshdrfs.luks.header import parse_header
from lukshdrfs.payload.writing import storage_failure, sync_descriptor, write_all

LUKS2 = after(empty(2, slots=2), adding(b"one"), adding(b"two"))


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


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_written_in_pieces_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that takes a few bytes at a time gets all of them, each in its place."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, data[:7], offset))
    with (tmp_path / "f").open("w+b") as stream:
        write_all(stream.fileno(), bytes(range(100)), 5, "it")
        assert stream.read() == bytes(5) + bytes(range(100))


def test_the_storages_answer_is_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written, the kernel's words and its number are told; without a number it is EIO."""
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", failing(errno.EDQUOT))
    attempts: list[tuple[int, Callable[[], None]]] = [
        (errno.ENOSPC, lambda: write_all(0, b"x", 0, "header h")),
        (errno.EDQUOT, lambda: sync_descriptor(0, "header h")),
    ]
    for code, attempt in attempts:
        with pytest.raises(PayloadError) as caught:
            attempt()
        assert (str(caught.value), caught.value.errno) == (f"header h: {os.strerror(code)}", code)
    unknown = storage_failure("header h", OSError("odd"))
    assert (str(unknown), unknown.errno) == (f"header h: {os.strerror(errno.EIO)}", errno.EIO)


# --- editing ---------------------------------------------------------------------------------------------------------


def test_a_header_is_written_step_by_step(header: Path, calls: list[tuple[str, int]]) -> None:
    """All of one step is on the storage before the next one begins, and the header is what it is then."""
    before = header.stat()
    with open_header(str(header)) as file:
        edit = changing(0, b"new", in_place=True)(file.header)
        edit = HeaderEdit(edit.steps)
        file.apply(edit)
        assert file.header.area == header.read_bytes() == edit.applied_to(LUKS2)
    expected = [[("write", write.offset) for write in step] + [("sync", -1)] for step in edit.steps]
    assert calls == [call for step in expected for call in step]
    assert len(edit.steps) == 2
    assert header.stat().st_ino == before.st_ino
    assert opened(header.read_bytes(), b"new") == 0


def test_signals_wait_while_key_material_is_overwritten(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, whatever would end the program is put off, and afterwards nothing is."""
    seen = []
    monkeypatch.setattr(module, "write_all", lambda *_: seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for in_place in (False, True):
        with open_header(str(header)) as file:
            file.apply(HeaderEdit(((Write(0, LUKS2[:8]),),), in_place=in_place))
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP}
    assert seen == [before, before | ending]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize("failures", [1, 2])
def test_an_edit_in_place_that_fails_is_taken_back(
    header: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """If the storage fails, what was there is put back; if that fails too, the message says what may be lost."""
    left = [None, *[PayloadError("header: full", errno.ENOSPC)] * failures]
    write = write_all

    def failing_write(*what: object) -> None:
        answer = left.pop(0) if left else None
        if answer is not None:
            raise answer
        write(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_all", failing_write)
    with open_header(str(header)) as file, pytest.raises(PayloadError) as caught:
        file.apply(changing(0, b"new", in_place=True)(file.header))
    assert caught.value.errno == errno.ENOSPC
    if failures == 1:
        assert "put back" in str(caught.value)
        assert header.read_bytes() == LUKS2
    else:
        assert "restore a backup" in str(caught.value)
    assert "header: full" in str(caught.value)


def test_an_edit_that_is_not_in_place_is_not_taken_back(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be: the storage's error is told as it is."""
    monkeypatch.setattr(module, "write_all", failing(errno.EIO))
    with open_header(str(header)) as file, pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.apply(HeaderEdit(((Write(0, b"LUKS"),),)))


def test_a_header_that_does_not_read_back_is_told(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that loses a write is found out."""
    monkeypatch.setattr(module, "write_all", lambda *_: None)
    with open_header(str(header)) as file, pytest.raises(HeaderError, match=r"header\.img does not read back"):
        file.apply(adding(b"three", 5)(parse_header(after(empty(2, slots=2)))))


def test_too_little_memory_is_told_before_anything_is_written(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the header is asked for, in KiB."""
    asked = []

    def require(what: str, memory_kib: int) -> None:
        asked.append((what, memory_kib))
        raise OutOfMemory("none")

    monkeypatch.setattr(module, "require_memory", require)
    with open_header(str(header)) as file, pytest.raises(OutOfMemory):
        file.apply(HeaderEdit(((Write(0, b"x" * 100),),)))
    assert asked == [(f"changing header {header}", 4 * len(LUKS2) // 1024)]
    assert header.read_bytes() == LUKS2


def test_what_a_header_file_is(header: Path) -> None:
    """Its size, its bytes, and whether the data lie elsewhere: no byte of them in the file."""
    with open_header(str(header)) as file:
        assert (file.name, file.size, file.is_regular, file.is_detached) == (str(header), len(LUKS2), True, True)
        assert (file.read(100), file.read(1 << 30), file.read(0)) == (LUKS2[:100], LUKS2, b"")
    attached = after(empty(2, slots=2, data_offset=1 << 20), adding(b"one"))
    for size, detached in ((1 << 20, True), ((1 << 20) + 1, False)):
        header.write_bytes(attached.ljust(size, b"\0"))
        with open_header(str(header)) as file:
            assert file.is_detached is detached
            inode, mode = header.stat().st_ino, stat.S_IMODE(header.stat().st_mode)
            file.replace(LUKS2)
        assert header.read_bytes() == (LUKS2 if detached else LUKS2.ljust(size, b"\0"))
        assert (header.stat().st_ino == inode, stat.S_IMODE(header.stat().st_mode)) == (not detached, mode)


def test_a_header_that_is_overwritten_is_synced(header: Path, calls: list[tuple[str, int]]) -> None:
    """It is written from its first byte on, and on the storage when that is done."""
    with open_header(str(header)) as file:
        file.overwrite(LUKS2)
    assert calls == [("write", 0), ("sync", -1)]


# --- opening ---------------------------------------------------------------------------------------------------------


def test_a_header_that_is_replaced_all_the_time_is_told(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets a file that no longer has the name tries again, and not for ever; nothing stays open."""
    tries = []
    monkeypatch.setattr(module, "_is_still", lambda *what: tries.append(what))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InUse, match="replaced"), locked_for_writing(str(header)):
        pytest.fail("it is another one")
    assert len(tries) == 20
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_file_that_has_the_name_is_edited(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that is replaced between its opening and its locking is opened again."""
    lock = header_lock

    def replacing(descriptor: int, name: str, *, exclusive: bool) -> object:
        assert exclusive
        monkeypatch.setattr(module, "header_lock", lock)
        header.unlink()
        header.write_bytes(after(LUKS2, changing(0, b"other", in_place=True)))
        return lock(descriptor, name, exclusive=exclusive)

    monkeypatch.setattr(module, "header_lock", replacing)
    with open_header(str(header)) as file:
        assert file.header.area == header.read_bytes() != LUKS2


@pytest.mark.parametrize("name", ["fd:0", "-"])
def test_only_what_has_a_path_is_edited(name: str) -> None:
    """A descriptor or a stream is no place to edit."""
    with pytest.raises(DeviceError, match="by its path"), locked_for_writing(name):
        pytest.fail("there is nothing to write to")


def test_what_cannot_be_opened_for_writing_is_told(tmp_path: Path, header: Path) -> None:
    """What is not there, and what is no file, are told by name; nothing stays open."""
    before = os.listdir("/proc/self/fd")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory"), (fifo, "neither a file")):
        with pytest.raises(DeviceError, match=f"backup {path}.*{reason}"):
            open_for_writing(str(path), "backup")
    assert len(os.listdir("/proc/self/fd")) == len(before)
    descriptor = open_for_writing(str(header), "header")
    assert os.pwrite(descriptor, b"L", 0) == 1
    os.close(descriptor)
