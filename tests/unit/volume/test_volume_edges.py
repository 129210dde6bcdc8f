"""What a volume does at its borders: other sizes, what C code is told of it, filling with random bytes, windows."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
from support.memory_payload import MemoryPayload

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import InUse, LukshdrfsError, PayloadError, ReadOnlyError
from lukshdrfs.native import lib
from lukshdrfs.payload import FilePayload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import Extent, Volume
from lukshdrfs.volume import random_fill as wipe
from lukshdrfs.volume.random_fill import fill_with_random

MIB = 1 << 20
KEY = random.Random(1).randbytes(64)


def cipher(sector_size: int = 512) -> SectorCipher:
    """Return AES-XTS."""
    return SectorCipher(CipherSpec.parse("aes-xts-plain64"), SecretBytes.copy_of(KEY), sector_size)


def volume_on(payload: MemoryPayload | FilePayload, size: int, *, dynamic: bool = True, first: int = 1024) -> Volume:
    """Return a volume of `first` bytes as they are, and an encrypted segment from byte 4096 of the payload on."""
    extents = [Extent(0, first, 0, 512, 0, None), Extent(first, size - first, 4096, 512, 7, cipher(), dynamic=dynamic)]
    return Volume(payload, extents)


# --- another size ----------------------------------------------------------------------------------------------------


def test_a_volume_is_made_shorter_with_its_payload() -> None:
    """The payload ends where the volume does, and what is left is what it was."""
    payload = MemoryPayload(4096 + 8192)
    volume = volume_on(payload, 1024 + 8192)
    volume.pwrite(b"stays", 1020)
    volume.resize(1024 + 512)
    assert (volume.size, payload.size) == (1024 + 512, 4096 + 512)
    assert volume.pread(5, 1020) == b"stays"
    volume.resize(1024 + 1024)
    assert (volume.size, payload.size, volume.pread(512, 1536)) == (2048, 4096 + 1024, bytes(512))
    volume.resize(2048)
    assert (volume.size, payload.size) == (2048, 5120)


def test_sectors_count_from_the_segments_start() -> None:
    """Behind a segment that is not whole sectors of the next one, sizes are odd, and fit."""
    extents = [Extent(0, 512, 0, 512, 0, None), Extent(512, 8192, 4096, 4096, 0, cipher(4096), dynamic=True)]
    volume = Volume(MemoryPayload(4096 + 8192), extents)
    volume.resize(512 + 4096)
    assert volume.size == 512 + 4096
    for size in (4096, 8192, 512 + 4096 + 512):
        with pytest.raises(PayloadError):
            volume.resize(size)


@pytest.mark.parametrize("size", [0, 1, 512, 1024, 1025, 1024 + 511, 1024 + 513])
def test_a_volume_has_whole_sectors_behind_its_first_segments(size: int) -> None:
    """Any other size is EINVAL, and nothing changes."""
    payload = MemoryPayload(4096 + 8192)
    volume = volume_on(payload, 1024 + 8192)
    with pytest.raises(PayloadError) as caught:
        volume.resize(size)
    assert caught.value.errno == errno.EINVAL
    assert (volume.size, payload.size) == (1024 + 8192, 4096 + 8192)


def test_a_size_that_the_header_fixes_stays() -> None:
    """It is EPERM to change it, and the payload's size means nothing."""
    payload = MemoryPayload(4096 + 8192)
    volume = volume_on(payload, 1024 + 8192, dynamic=False)
    for size in (1024 + 512, 1024 + 16384):
        with pytest.raises(PayloadError) as caught:
            volume.resize(size)
        assert caught.value.errno == errno.EPERM
    payload.resize(1 << 20)
    volume.refresh_size()
    assert (volume.resizable, volume.room(), volume.size) == (False, 1024 + 8192, 1024 + 8192)
    with pytest.raises(ReadOnlyError):
        volume_on(MemoryPayload(4096 + 8192, read_only=True), 1024 + 8192).resize(1 << 20)


def test_a_volume_notices_another_size_of_its_payload() -> None:
    """It ends with the last whole sector; a payload with not even one left is an error, and changes nothing."""
    payload = MemoryPayload(4096 + 8192)
    volume = volume_on(payload, 1024 + 8192)
    for size, expected in ((4096 + 8192, 8192), (4096 + 9000, 8704), (4096 + 512, 512), (4096 + 1023, 512)):
        payload.resize(size)
        volume.refresh_size()
        assert volume.size == volume.room() == 1024 + expected
    for size in (4096 + 511, 4096, 100, 0):
        payload.resize(size)
        with pytest.raises(PayloadError, match="too short"):
            volume.refresh_size()
        assert (volume.size, volume.room()) == (1024 + 512, 1024)


def test_shortening_waits_for_those_who_are_at_the_end() -> None:
    """A write that is under way at the end that goes is done before the payload is cut."""
    payload = MemoryPayload(4096 + 8192)
    volume = volume_on(payload, 1024 + 8192)
    inside, go_on, order = threading.Event(), threading.Event(), list[str]()
    resize = payload.resize

    def slowly(_offset: int, _size: int) -> None:
        inside.set()
        go_on.wait(20)
        order.append("written")

    payload.before_write = slowly
    payload.resize = lambda size: (order.append("cut"), resize(size))[1]  # type: ignore[method-assign,func-returns-value]
    writer = threading.Thread(target=volume.pwrite, args=(bytes(512), 1024 + 8192 - 512))
    writer.start()
    inside.wait(20)
    shortener = threading.Thread(target=volume.resize, args=(2048,))
    shortener.start()
    shortener.join(0.1)
    assert order == []
    go_on.set()
    for thread in (writer, shortener):
        thread.join(20)
    assert order == ["written", "cut"]


def test_what_was_added_to_a_file_is_seen_as_unwritten(tmp_path: Path) -> None:
    """A hole at the end, behind data, is counted in whole sectors of the volume; a server cannot tell."""
    path = tmp_path / "payload"
    path.write_bytes(b"x" * (4096 + 2 * MIB))
    os.truncate(path, 4096 + 3 * MIB + 100)
    with FilePayload.open(path, read_only=False) as payload:
        volume = volume_on(payload, 1024 + 2 * MIB)
        assert (volume.unseen(), volume.unwritten_end()) == (MIB, 0)
        volume.refresh_size()
        assert (volume.unseen(), volume.unwritten_end()) == (0, MIB)
        assert volume_on(payload, 1024 + 3 * MIB, dynamic=False).unwritten_end() == 0
    in_memory = volume_on(MemoryPayload(MIB), 2048)
    assert (in_memory.unseen(), in_memory.unwritten_end()) == (0, 0)


def test_more_than_the_file_system_has_is_refused_at_once(tmp_path: Path) -> None:
    """ENOSPC comes before hours of filling, and the file is as long as it was."""
    path = tmp_path / "payload"
    path.write_bytes(bytes(4096 + 512))
    status = os.statvfs(tmp_path)
    with FilePayload.open(path, read_only=False) as payload:
        volume = volume_on(payload, 1024 + 512)
        with pytest.raises(PayloadError) as caught:
            volume.lengthen(1024 + 2 * status.f_frsize * status.f_blocks // 512 * 512)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert (volume.size, path.stat().st_size) == (1024 + 512, 4096 + 512)
        volume.lengthen(1024 + 2 * MIB)
        assert (volume.size, path.stat().st_size) == (1024 + 2 * MIB, 4096 + 2 * MIB)


def test_a_files_size_is_changed_where_that_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has the new size at once; a payload that is read only, or a device, has none."""
    path = tmp_path / "payload"
    path.write_bytes(bytes(4096))
    with FilePayload.open(path, read_only=True) as payload, pytest.raises(ReadOnlyError):
        payload.resize(1)
    with FilePayload.open(path, read_only=False) as payload:
        for size in (10_000, 0, 5):
            payload.resize(size)
            assert (payload.size, path.stat().st_size) == (size, size)
        with pytest.raises(PayloadError, match="resizing at byte -1") as caught:
            payload.resize(-1)
        assert (caught.value.errno, payload.size) == (errno.EINVAL, 5)
        monkeypatch.setattr(FilePayload, "is_regular", False)
        with pytest.raises(PayloadError, match="is a device") as caught:
            payload.resize(7)
        assert caught.value.errno == errno.EPERM
    assert path.stat().st_size == 5


# --- what C code has -------------------------------------------------------------------------------------------------


def test_c_code_has_the_volume_as_it_is(tmp_path: Path) -> None:
    """The same object each time, with the size and the mode of this one; none for what C code cannot use."""
    path = tmp_path / "payload"
    path.write_bytes(bytes(4096 + 8192))
    for read_only in (True, False):
        with FilePayload.open(path, read_only=read_only) as payload:
            volume = volume_on(payload, 1024 + 8192)
            native = volume.native(3)
            assert native is not None
            assert volume.native(3) is native
            assert lib.native_volume_size(native.native) == 1024 + 8192
            assert lib.native_volume_is_read_only(native.native) == read_only
            volume.close()
    assert volume_on(MemoryPayload(MIB), 2048).native(1) is None


def test_a_closed_cipher_prepares_nothing() -> None:
    """A cipher that is open can be readied for any number of threads; afterwards that is an error."""
    one = cipher()
    data = bytearray(512)
    one.prepare(0)
    one.prepare(5)
    one.encrypt(data, 0)
    one.close()
    with pytest.raises(LukshdrfsError, match="closed"):
        one.prepare(1)


def test_patience_is_the_payloads() -> None:
    """Whether to wait for a storage that is away is passed on as it is."""
    payload = MemoryPayload(MIB)
    told: list[str] = []
    payload.fail_waiting = lambda: told.append("fail")  # type: ignore[method-assign]
    payload.wait_again = lambda: told.append("wait")  # type: ignore[method-assign]
    volume_on(payload, 2048).wait_again()
    volume_on(payload, 2048).fail_waiting()
    assert told == ["wait", "fail"]


# --- random bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "size"), [(0, 65536), (4096, 300_000), (512, 65535), (0, 1), (100, 0)])
def test_a_range_is_filled_with_random_bytes(monkeypatch: pytest.MonkeyPatch, offset: int, size: int) -> None:
    """All of it and nothing else; no two sectors are alike, nor are two fillings; it is flushed now and at the end."""
    monkeypatch.setattr(wipe, "_STEP", 65536)
    monkeypatch.setattr(wipe, "_STEPS_PER_FLUSH", 2)
    contents, steps = [], -(-size // 65536)
    for _ in range(2):
        payload, told = MemoryPayload(512 * 1024), list[tuple[int, int]]()

        def progress(done: int, payload: MemoryPayload = payload, told: list[tuple[int, int]] = told) -> None:
            told.append((done, payload.flushes))

        fill_with_random(payload, offset, size, progress)
        assert told == [(min(size, (n + 1) * 65536), (n + 1) // 2) for n in range(steps)]
        assert payload.flushes == steps // 2 + 1
        content = payload.content()
        assert not any(content[:offset])
        assert not any(content[offset + size :])
        contents.append(content[offset : offset + size])
    pieces = [content[at : at + 16] for content in contents for at in range(0, size - 15, 16)]
    assert not pieces or Counter(pieces).most_common(1)[0][1] == 1
    payload = MemoryPayload(65536)
    fill_with_random(payload, 0, 4096)
    assert any(payload.content(0, 4096))


# --- windows ---------------------------------------------------------------------------------------------------------

WINDOWS = 1 << 61
"""Where the bytes that stand for 512 of a payload begin, and before them one that says that there are windows."""


def held(path: Path, start: int, size: int = 1) -> int:
    """Return which kind of lock somebody else has on some bytes."""
    from lukshdrfs.payload.image_locks import _FLOCK  # noqa: PLC0415

    with path.open("r+b") as stream:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, size, 0)
        kind: int = _FLOCK.unpack(fcntl.fcntl(stream, fcntl.F_OFD_GETLK, question))[0]
    return kind


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a payload for several volumes."""
    path = tmp_path / "payload"
    path.write_bytes(bytes(65536))
    return path


@pytest.mark.parametrize("read_only", [True, False])
def test_a_window_is_locked_in_units_of_512_bytes(image: Path, *, read_only: bool) -> None:
    """Each unit that the window touches, and none beside; whoever knows of no windows is kept out."""
    with FilePayload.open(image, read_only=read_only, window=(4096, 1025)):
        kind = fcntl.F_RDLCK if read_only else fcntl.F_WRLCK
        assert [held(image, WINDOWS + 8 + unit) for unit in (-1, 0, 1, 2, 3)] == [
            fcntl.F_UNLCK, kind, kind, kind, fcntl.F_UNLCK,
        ]  # fmt: skip
        assert held(image, WINDOWS - 1) == fcntl.F_RDLCK
        assert held(image, 201) == fcntl.F_RDLCK
        assert held(image, 101) == (fcntl.F_UNLCK if read_only else fcntl.F_RDLCK)
        with pytest.raises(InUse):
            FilePayload.open(image, read_only=False)


def test_windows_that_do_not_overlap_are_open_together(image: Path) -> None:
    """Beside one another they are written to; what overlaps by a byte is in use, and readers share."""
    with (
        FilePayload.open(image, read_only=False, window=(0, 4096)),
        FilePayload.open(image, read_only=False, window=(4096, 4096)),
    ):
        for window in ((0, 512), (4095, 1), (4096, 1), (8191, 10_000), (0, 65536)):
            for read_only in (True, False):
                with pytest.raises(InUse):
                    FilePayload.open(image, read_only=read_only, window=window)
        FilePayload.open(image, read_only=False, window=(8192, 512)).close()
    with FilePayload.open(image, read_only=True, window=(0, 4096)):
        FilePayload.open(image, read_only=True, window=(0, 4096)).close()
        with pytest.raises(InUse):
            FilePayload.open(image, read_only=False, window=(0, 4096))


def test_a_window_is_not_had_beside_who_has_all_of_it(image: Path) -> None:
    """Who has opened the payload as a whole for writing keeps windows out."""
    with FilePayload.open(image, read_only=False), pytest.raises(InUse):
        FilePayload.open(image, read_only=False, window=(0, 4096))
    with FilePayload.open(image, read_only=True), pytest.raises(InUse):
        FilePayload.open(image, read_only=False, window=(0, 4096))
    FilePayload.open(image, read_only=False, window=(0, 4096)).close()


def test_a_reader_of_all_is_not_overlooked_among_readers_of_windows(image: Path) -> None:
    """Whoever writes to a window would write under the one who reads the whole, whoever came in between."""
    with (
        FilePayload.open(image, read_only=True),
        FilePayload.open(image, read_only=True, window=(0, 4096)),
        pytest.raises(InUse),
    ):
        FilePayload.open(image, read_only=False, window=(8192, 4096))
    with FilePayload.open(image, read_only=True, window=(0, 4096)):
        FilePayload.open(image, read_only=False, window=(8192, 4096)).close()
        FilePayload.open(image, read_only=True).close()
