"""What is done differently for a device, and for what is behind a server, without having either."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.edited import KEY, adding, after, empty
from support.memory_payload import MemoryPayload

from lukshdrfs.errors import DeviceError, HeaderError
from lukshdrfs.headers import HeaderPin, read_header
from lukshdrfs.headers import source as header_source
from lukshdrfs.payload import Access, FilePayload, PayloadName
from lukshdrfs.payload import file as payload_file
from lukshdrfs.volume import open_volume, opening

LUKS2 = after(empty(2, slots=2), adding(b"one"))
DAMAGED = LUKS2[:450] + b"\0\0\0" + LUKS2[453:]


@pytest.mark.parametrize("window", [None, (0, 512)])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_device_is_opened_for_ourselves_and_asked_whether_it_takes_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: tuple[int, int] | None, *, read_only: bool
) -> None:
    """For writing, and only then: exclusively unless others have other parts, and never one that refuses writes."""
    path = tmp_path / "device"
    path.write_bytes(bytes(4096))
    monkeypatch.setattr(payload_file, "_file_mode", lambda _name: stat.S_IFBLK | 0o600)
    monkeypatch.setattr(stat, "S_IFMT", lambda _mode: stat.S_IFBLK)  # nor does what is open look like another kind
    flags: list[int] = []
    checked: list[tuple[str, str]] = []
    opening_it = payload_file._open

    def noting_open(name: str, how: int) -> int:
        flags.append(how)
        return opening_it(name, how)

    def check(descriptor: int, name: str, _described: str, _way_out: str) -> None:
        checked.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), name))
        if len(checked) > 1:
            raise DeviceError("read-only")

    monkeypatch.setattr(payload_file, "_open", noting_open)
    monkeypatch.setattr(payload_file, "check_writable_device", check)
    before = os.listdir("/proc/self/fd")
    FilePayload.open(path, read_only=read_only, window=window).close()
    exclusively = os.O_EXCL if window is None else 0
    assert flags == [os.O_RDONLY if read_only else os.O_RDWR | exclusively]
    assert checked == ([] if read_only else [(str(path), str(path))])
    if not read_only:
        with pytest.raises(DeviceError):
            FilePayload.open(path, read_only=False, window=window)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("preserve", [None, True, False])
def test_times_are_put_back_when_that_is_asked_for(tmp_path: Path, preserve: bool | None) -> None:
    """By itself, what is written to has the time of that; with `preserve_times` it has its old ones."""
    path = tmp_path / "payload"
    path.write_bytes(bytes(4096))
    os.utime(path, ns=(10**18, 2 * 10**18))
    options: dict[str, Any] = {} if preserve is None else {"preserve_times": preserve}
    with FilePayload.open(path, read_only=False, **options) as payload:
        payload.write(memoryview(b"x"), 0)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    assert (times == (10**18, 2 * 10**18)) == bool(preserve)
    assert bool(preserve) or times[1] != 2 * 10**18


def test_a_payload_behind_a_server_is_opened_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw, with the mode that is asked for; and let go if the header is not its own."""
    header = tmp_path / "header"
    header.write_bytes(LUKS2)
    opened: list[tuple[str, str, bool]] = []
    payload = MemoryPayload(8192)

    def open_memory(what: PayloadName, how: Access) -> MemoryPayload:
        opened.append((what.name, what.format, how.read_only))
        return payload

    monkeypatch.setattr(opening, "open_payload", open_memory)
    for read_only in (True, False):
        payload.closed = False
        with open_volume("nbd://host/x", header=header, volume_key=KEY, read_only=read_only) as volume:
            assert volume.size == 8192
        assert payload.closed
    assert opened == [("nbd://host/x", "raw", True), ("nbd://host/x", "raw", False)]
    payload.resize(511)
    payload.closed = False
    with pytest.raises(DeviceError):
        open_volume("nbd://host/x", header=header, volume_key=KEY)
    assert payload.closed


@pytest.mark.parametrize("warn", [True, False])
def test_a_header_behind_a_server_is_read_like_a_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, warn: bool
) -> None:
    """For reading only; damage that can be worked around is told by the address, unless nobody is to hear of it."""
    asked: list[tuple[str, bool]] = []

    class Nbd:
        @staticmethod
        @contextlib.contextmanager
        def open(name: str, *, read_only: bool) -> Iterator[MemoryPayload]:
            asked.append((name, read_only))
            payload = MemoryPayload(len(DAMAGED))
            payload.write(memoryview(DAMAGED), 0)
            yield payload

    monkeypatch.setattr(header_source, "NbdPayload", Nbd)
    header = read_header("nbd://host/header", warn=warn)
    assert (asked, len(header.warnings)) == ([("nbd://host/header", True)], 1)
    assert ("header nbd://host/header: " in caplog.text) == warn
    with pytest.raises(HeaderError, match="not the pinned one"):
        read_header("nbd://host/header", HeaderPin(uuid="other"))
