"""What a payload promises, tried on everything that says it is one: as Python sees it, and as C does."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from support.devices import loop_device
from support.memory_payload import MemoryPayload
from support.native_views import NativePayload
from support.nbd import address, qemu_nbd
from support.qcow2_images import new_image
from support.tools import require

from lukshdrfs.errors import PayloadError, ReadOnlyError
from lukshdrfs.native import ffi
from lukshdrfs.payload import Access, FilePayload, Payload, PayloadName, open_payload

SIZE = 1 << 20

Open = Callable[[bool], Payload]


class Bytes(Protocol):
    """What both languages have of a payload."""

    @property
    def size(self) -> int: ...

    def read_into(self, buffer: memoryview, offset: int) -> None: ...

    def write(self, data: memoryview, offset: int, *, synchronous: bool = False) -> None: ...

    def flush(self) -> None: ...


def opener(name: str, image_format: str = "raw") -> Open:
    """Return how a payload is opened, for reading only or not."""
    return lambda read_only: open_payload(PayloadName(name, image_format), Access(read_only=read_only, patience_s=5))


KINDS = ("memory", "file", "file, synchronous", "block device", "nbd", "qcow2")
NATIVE_KINDS = KINDS[1:]
"""What is in memory is for tests, and Python's alone."""


@contextmanager
def openings(kind: str, folder: Path) -> Iterator[Open]:
    """Yield what opens a payload of SIZE zeros, and opens it again with what was written."""
    path = folder / "payload"
    with ExitStack() as held:
        if kind == "memory":
            kept = MemoryPayload(SIZE)

            def open_memory(read_only: bool) -> Payload:
                kept._read_only = read_only
                return kept

            yield open_memory
        elif kind == "qcow2":
            require(["qemu-img", "qemu-storage-daemon"])
            yield opener(str(new_image(path, SIZE)), "qcow2")
        else:
            path.write_bytes(bytes(SIZE))
            if kind == "nbd":
                require(["qemu-nbd"])
                held.enter_context(qemu_nbd(path, folder / "socket"))
                yield opener(address(folder / "socket", "disk"))
            elif kind == "block device":
                require(["root", "losetup"])
                yield opener(held.enter_context(loop_device(path)))
            elif kind == "file":
                yield opener(str(path))
            else:
                name = PayloadName(str(path))
                yield lambda read_only: open_payload(name, Access(read_only=read_only, write_through=not read_only))


@pytest.fixture(params=KINDS)
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Return what opens a payload."""
    with openings(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def payload(opening: Open) -> Iterator[Payload]:
    """Return the payload, open for writing."""
    with opening(False) as opened:
        yield opened


@pytest.fixture(params=[*(("python", kind) for kind in KINDS), *(("c", kind) for kind in NATIVE_KINDS)], ids=" ".join)
def bytes_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bytes]:
    """Return the payload as one of the languages sees it."""
    language, kind = request.param
    with openings(kind, tmp_path) as opening, opening(False) as payload:
        yield payload if language == "python" else NativePayload(payload)


def read(payload: Bytes, size: int, offset: int) -> bytes:
    """Return some of it."""
    buffer = bytearray(size)
    payload.read_into(memoryview(buffer), offset)
    return bytes(buffer)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 512), (4096, 65536), (1, 1), (4095, 2), (513, 100_001), (SIZE - 7, 7)]
)
@pytest.mark.parametrize("synchronous", [False, True])
def test_what_was_written_is_read(bytes_of: Bytes, offset: int, size: int, synchronous: bool) -> None:
    """At any byte, and nothing beside it changes."""
    data = bytes(1 + i % 251 for i in range(size))
    bytes_of.write(memoryview(data), offset, synchronous=synchronous)
    assert read(bytes_of, size, offset) == data
    assert read(bytes_of, SIZE, 0) == bytes(offset) + data + bytes(SIZE - offset - size)


@pytest.mark.parametrize("opening", NATIVE_KINDS, indirect=True)
def test_both_languages_see_the_same(payload: Payload) -> None:
    """What one has written is there for the other at once."""
    native = NativePayload(payload)
    payload.write(memoryview(b"from Python"), 100)
    assert read(native, 11, 100) == b"from Python"
    native.write(memoryview(b"from C"), 100)
    assert read(payload, 11, 100) == b"from Cython"


def test_what_was_flushed_is_there_after_it_is_opened_again(opening: Open) -> None:
    """Whatever keeps it."""
    with opening(False) as payload:
        payload.write(memoryview(b"kept"), 4096)
        payload.flush()
    with opening(True) as payload:
        assert read(payload, 6, 4095) == b"\0kept\0"


def test_its_size_is_what_it_was_made_with(payload: Payload) -> None:
    """In bytes; asking again changes nothing."""
    assert payload.size == SIZE
    payload.refresh_size()
    assert payload.size == SIZE


@pytest.mark.parametrize(("offset", "size"), [(SIZE, 1), (SIZE - 1, 2), (SIZE + 4096, 512)])
def test_a_read_past_the_end_is_an_error_with_its_errno(bytes_of: Bytes, offset: int, size: int) -> None:
    """It is never filled up with something."""
    with pytest.raises(PayloadError) as caught:
        read(bytes_of, size, offset)
    assert caught.value.errno == errno.EIO


def test_what_is_open_for_reading_is_not_written(opening: Open) -> None:
    """By no way, and flushing is no error: there is nothing to flush."""
    with opening(True) as payload:
        assert payload.read_only
        with pytest.raises((ReadOnlyError, PayloadError)) as caught:
            payload.write(memoryview(b"x"), 0)
        assert caught.value.errno == errno.EROFS
        payload.flush()
        assert read(payload, 1, 0) == b"\0"


def test_it_is_resized_or_says_that_it_cannot_be(payload: Payload) -> None:
    """New bytes are zeros; what is not ours to resize is EPERM, and keeps its size."""
    payload.write(memoryview(b"x" * 512), SIZE - 512)
    ours = payload.is_regular if isinstance(payload, FilePayload) else isinstance(payload, MemoryPayload)
    if not ours:
        with pytest.raises(PayloadError) as caught:
            payload.resize(SIZE - 512)
        assert caught.value.errno == errno.EPERM
        assert payload.size == SIZE
        return
    payload.resize(SIZE - 512)
    payload.resize(SIZE + 4096)
    assert payload.size == SIZE + 4096
    if not isinstance(payload, MemoryPayload):  # it keeps what it had, as no storage does
        assert read(payload, 4608, SIZE - 512) == bytes(4608)


def test_it_is_closed_once_or_twice(opening: Open) -> None:
    """A second time does nothing."""
    payload = opening(False)
    payload.close()
    payload.close()


def test_many_threads_write_and_read_their_own(bytes_of: Bytes) -> None:
    """At the same time, with flushes in between; nobody's bytes are another's."""
    part = SIZE // 8

    def work(number: int) -> None:
        for turn in range(6):
            data = bytes([16 * number + turn]) * (part // 3)
            at = number * part + 77 * turn
            bytes_of.write(memoryview(data), at, synchronous=turn % 3 == 0)
            if turn % 2:
                bytes_of.flush()
            assert read(bytes_of, len(data), at) == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_whoever_waits_can_be_let_go_and_wait_again(payload: Payload) -> None:
    """While the storage is there, that disturbs nobody for good."""
    payload.fail_waiting()
    payload.wait_again()
    for _ in range(200):  # a server is connected to again
        try:
            payload.write(memoryview(b"on"), 0)
            break
        except PayloadError:
            threading.Event().wait(0.05)
    assert read(payload, 2, 0) == b"on"


@pytest.mark.parametrize("opening", ["nbd", "qcow2"], indirect=True)
def test_what_nobody_waits_for_is_finished_once(payload: Payload) -> None:
    """A request that is taken calls back with its outcome, from another thread; what cannot be is refused at once."""
    native, done = NativePayload(payload), threading.Event()
    outcomes: list[int] = []

    @ffi.callback("void(struct payload_request *, int)")  # type: ignore[untyped-decorator]
    def finished(_request: object, error: int) -> None:
        outcomes.append(error)
        done.set()

    data = ffi.new("uint8_t[]", bytes(range(256)) * 16)
    for writing in (True, False):
        done.clear()
        request = ffi.new(
            "struct payload_request *",
            {"writing": writing, "data": data, "size": 4096, "offset": 8192, "finished": finished},
        )
        assert native.start(request)
        assert done.wait(20)
        ffi.memmove(data, bytes(4096), 4096 * writing)  # what is read comes from the storage
    assert bytes(ffi.buffer(data, 4096)) == bytes(range(256)) * 16
    assert outcomes == [0, 0]
    past_the_end = ffi.new(
        "struct payload_request *", {"writing": False, "data": data, "size": 4096, "offset": SIZE, "finished": finished}
    )
    assert not native.start(past_the_end)
