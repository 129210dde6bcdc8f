"""What a qcow2 header says of other files, whatever is in it."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.errors import DeviceError
from lukshdrfs.payload.qemu.image_file import ImageFile
from lukshdrfs.payload.qemu.qcow2_header import Qcow2Header, path_of_part, read_qcow2_header

CLUSTER_BITS = 12
DATA_FILE, BACKING_FORMAT = 0x44415441, 0xE2792ACA


def header(
    *,
    version: int = 3,
    name: bytes = b"",
    at: int = 1024,
    features: int = 0,
    extensions: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    """Return the first cluster of an image."""
    start = struct.pack(">4sIQIIQ", b"QFI\xfb", version, at if name else 0, len(name), CLUSTER_BITS, 1 << 20)
    length = 104 if version >= 3 else 72
    start = start.ljust(72, b"\0") + (struct.pack(">QQQII", features, 0, 0, 4, length) if version >= 3 else b"")
    for kind, content in extensions:
        start += struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)
    return (start.ljust(at, b"\0") + name).ljust(1 << CLUSTER_BITS, b"\0")


@contextlib.contextmanager
def image_of(content: bytes) -> Iterator[ImageFile]:
    """Yield an image that is in memory."""
    descriptor = os.memfd_create("image")
    os.pwrite(descriptor, content, 0)
    with contextlib.closing(ImageFile(descriptor, "/folder/image", read_only=True)) as image:
        yield image


def read(content: bytes) -> Qcow2Header:
    """Read a header."""
    with image_of(content) as image:
        return read_qcow2_header(image)


def test_an_image_by_itself() -> None:
    """Most images name nothing."""
    for version in (2, 3):
        assert read(header(version=version)) == Qcow2Header(None, None, None)


def test_the_files_that_it_names() -> None:
    """A backing file with its format, in both versions; a data file where the feature says that it is used."""
    names = ((0x6803F857, bytes(48)), (BACKING_FORMAT, b"raw"))
    for version in (2, 3):
        assert read(header(version=version, name=b"base", extensions=names)) == Qcow2Header("base", "raw", None)
    data = ((DATA_FILE, b"data"),)
    assert read(header(extensions=data)).data_file is None
    assert read(header(extensions=data, features=4)).data_file == "data"
    assert read(header(features=4)).data_file == ""
    assert read(header(name=b"n\xe4me")).backing_file == os.fsdecode(b"n\xe4me")


@pytest.mark.parametrize(
    "content",
    [b"", b"QFI\xfb", bytes(4096), header(version=1), header(version=4), header()[:90], header(name=b"n" * 1024),
     header(name=b"name", at=4094)[:4096]],
)  # fmt: skip
def test_what_is_no_header(content: bytes) -> None:
    """Another format, another version, one that is cut off, a name that is too long or not in it."""
    with pytest.raises(DeviceError, match="/folder/image"):
        read(content)


@given(st.binary(min_size=0, max_size=200), st.integers(0, 300))
def test_damage_of_any_kind(damage: bytes, offset: int) -> None:
    """Whatever is written over a header, it is read or refused."""
    content = bytearray(header(name=b"base", extensions=((BACKING_FORMAT, b"qcow2"), (DATA_FILE, b"data")), features=4))
    content[offset : offset + len(damage)] = damage
    with contextlib.suppress(DeviceError):
        read(bytes(content))


def test_names_are_paths() -> None:
    """A name is relative to the image that has it; a protocol is none of ours."""
    with image_of(b"") as image:
        paths = {"base": "/folder/base", "/base": "/base", "file:b": "/folder/b", "./a:b": "/folder/./a:b"}
        for name, path in paths.items():
            assert path_of_part(image, name) == path
        for name in ("nbd:localhost:10809", "json:{}", "https://host/x", "host_device:/dev/sda", "a:b"):
            with pytest.raises(DeviceError, match="protocol"):
                path_of_part(image, name)
