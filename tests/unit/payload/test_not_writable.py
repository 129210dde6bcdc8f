"""Why something cannot be written to, as it is told to people, without having such things at hand."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lukshdrfs.errors import DeviceError
from lukshdrfs.payload.writable import check_writable_device, not_writable

GET_FLAGS, IS_READ_ONLY = 0x80086601, 0x125E
"""linux/fs.h: FS_IOC_GETFLAGS of a 64-bit machine, BLKROGET."""
IMMUTABLE, APPEND_ONLY = 0x10, 0x20


@pytest.mark.parametrize(
    ("code", "way_out"),
    [
        (errno.EROFS, "mount -o remount,rw"), (errno.EACCES, "its owner or root"), (errno.ETXTBSY, "as swap"),
        (errno.EPERM, ""),
    ],
)  # fmt: skip
def test_the_way_out_of_what_is_not_writable(tmp_path: Path, code: int, way_out: str) -> None:
    """What can be read and not written to is told with the kernel's reason and what changes that."""
    path = tmp_path / "it"
    path.touch()
    said = str(not_writable(str(path), "header it", OSError(code, "")))
    assert said.startswith(f"header it cannot be written to: {os.strerror(code)}")
    assert way_out in said
    assert said.endswith(")") == bool(way_out)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM])
def test_what_cannot_even_be_read_has_the_kernels_reason_alone(tmp_path: Path, code: int) -> None:
    """What is not there, or nobody's to read, is not told to be a matter of writing."""
    assert (
        str(not_writable(str(tmp_path / "none"), "header it", OSError(code, ""))) == f"header it: {os.strerror(code)}"
    )


@pytest.mark.parametrize(
    ("flags", "way_out"),
    [
        (IMMUTABLE, "chattr -i"), (IMMUTABLE | 0x80000, "chattr -i"), (APPEND_ONLY, "chattr -a"),
        (APPEND_ONLY | IMMUTABLE, "chattr -i"), (0x80000, ""), (None, ""),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="the ioctl's number is another one")
def test_a_files_attributes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int | None, way_out: str
) -> None:
    """What chattr(1) has set is named with the command that unsets it; nothing stays open."""
    path = tmp_path / "it"
    path.touch()

    def ioctl(descriptor: int, request: int, room: bytes) -> bytes:
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        assert request == GET_FLAGS
        if flags is None:
            raise OSError(errno.ENOTTY, "")
        return flags.to_bytes(4, sys.byteorder) + b"\xff" * (len(room) - 4)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = os.listdir("/proc/self/fd")
    said = str(not_writable(str(path), "header it", OSError(errno.EPERM, "")))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert ("(" in said) == bool(way_out)
    assert (f"'{way_out} {path}'" in said) == bool(way_out)


def test_a_file_that_cannot_be_looked_at_has_no_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be read by access(2) and cannot be opened is told without a way out."""
    (tmp_path / "it").touch()

    def fail(_name: str, flags: int) -> int:
        assert flags == os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, "it may be anything, and nothing is to happen"
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "open", fail)
    said = str(not_writable(str(tmp_path / "it"), "header it", OSError(errno.EPERM, "")))
    assert said == f"header it cannot be written to: {os.strerror(errno.EPERM)}"


@pytest.mark.parametrize("check", [
    lambda descriptor: check_writable_device(descriptor, "/dev/it", "header it"),
    lambda descriptor: check_writable_device(descriptor, "/dev/it", "payload it", "use --read-only"),
])  # fmt: skip
@pytest.mark.parametrize("read_only", [0, 1, 256])
def test_a_read_only_device_is_told(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[int], None], read_only: int
) -> None:
    """The kernel opens one for writing; it is asked before anything is written."""
    device = os.stat_result((stat.S_IFBLK | 0o660, *Path("/dev/null").stat()[1:]))
    monkeypatch.setattr(os, "fstat", lambda _descriptor: device)

    def ioctl(descriptor: int, request: int, room: bytes) -> bytes:
        assert (descriptor, request, len(room)) == (77, IS_READ_ONLY, 4)
        return read_only.to_bytes(4, sys.byteorder)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    if read_only:
        with pytest.raises(DeviceError, match="read-only"):
            check(77)
    else:
        check(77)


def test_a_file_is_not_asked_whether_it_is_a_read_only_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only block devices know that question."""
    monkeypatch.setattr(fcntl, "ioctl", pytest.fail)
    with (tmp_path / "it").open("wb") as stream:
        check_writable_device(stream.fileno(), "it", "header it")
