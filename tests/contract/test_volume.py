"""What a volume promises, tried on both: Python's, which is obviously right, and C's, which is fast."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.native_views import NativeView

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import PayloadError, ReadOnlyError
from lukshdrfs.payload import FilePayload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import Extent, Volume
from lukshdrfs.volume.extents import ExtentMap

PAYLOAD_SIZE = 1 << 18
KEY = random.Random(7).randbytes(64)


class Plaintext(Protocol):
    """What both volumes have."""

    @property
    def size(self) -> int: ...

    def pread(self, size: int, offset: int) -> bytes: ...

    def pwrite(self, data: bytes, offset: int, *, synchronous: bool = False) -> int: ...

    def flush(self) -> None: ...


def cipher(text: str, sector_size: int) -> SectorCipher:
    """Return a cipher with a key of its largest size."""
    spec = CipherSpec.parse(text)
    return SectorCipher(spec, SecretBytes.copy_of(KEY[: spec.key_sizes[-1]]), sector_size)


def extents_of(layout: str) -> list[Extent]:
    """Return one segment, or several of several kinds, which do not begin at multiples of their sectors."""
    if layout == "one":
        return [Extent(0, 131072, 8192, 512, 5, cipher("aes-xts-plain64", 512))]
    if layout == "large sectors":
        return [Extent(0, 131072, 4096, 4096, 0, cipher("aes-xts-plain64", 4096))]
    return [
        Extent(0, 512 * 21, 65536, 512, 1 << 40, cipher("aes-xts-plain64", 512)),
        Extent(512 * 21, 4096 * 3, 512, 4096, 16, cipher("aes-cbc-plain64", 4096)),
        Extent(23040, 1536, 131072, 512, 0, None),
        Extent(24576, 2048 * 5, 16384, 2048, 0, cipher("aes-xts-plain64", 2048), dynamic=True),
    ]


LAYOUTS = ("one", "large sectors", "mixed")


@pytest.fixture(params=LAYOUTS)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    """Return a volume on a file of zeros."""
    path = tmp_path / "payload"
    path.write_bytes(bytes(PAYLOAD_SIZE))
    with FilePayload.open(path, read_only=False) as payload, Volume(payload, extents_of(request.param)) as made:
        made.pwrite(bytes(made.size), 0)
        yield made


@pytest.fixture(params=["python", "c"])
def plaintext(request: pytest.FixtureRequest, volume: Volume) -> Plaintext:
    """Return the volume of one of the languages."""
    return volume if request.param == "python" else NativeView(volume)


@settings(max_examples=60)
@given(layout=st.sampled_from(LAYOUTS), data=st.data())
def test_it_is_bytes(layout: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever either of them writes, anywhere and of any length, is what both of them read: as a bytearray has it."""
    path = tmp_path_factory.mktemp("volume") / "payload"
    path.write_bytes(bytes(PAYLOAD_SIZE))
    with FilePayload.open(path, read_only=False) as payload, Volume(payload, extents_of(layout)) as python:
        model = bytearray(python.size)
        python.pwrite(bytes(model), 0)
        both: list[Plaintext] = [python, NativeView(python)]
        for _ in range(data.draw(st.integers(1, 12))):
            one = data.draw(st.sampled_from(both))
            offset = data.draw(st.integers(0, len(model) + 3000))
            size = data.draw(st.integers(0, 20000))
            if data.draw(st.booleans()):
                assert one.pread(size, offset) == bytes(model[offset : offset + size])
            elif size and offset >= len(model):
                with pytest.raises(PayloadError) as caught:
                    one.pwrite(bytes(size), offset)
                assert caught.value.errno == errno.ENOSPC
            else:
                written = random.Random(size).randbytes(size)
                fitted = min(size, len(model) - offset) if offset < len(model) else 0
                assert one.pwrite(written, offset, synchronous=data.draw(st.booleans())) == fitted
                model[offset : offset + fitted] = written[:fitted]
        for one in both:
            assert one.pread(len(model), 0) == bytes(model)
        python.flush()


def test_the_ciphertext_is_the_same(tmp_path: Path) -> None:
    """Byte for byte, whoever has written it; and nothing of the payload outside of the volume is touched."""
    found = []
    for language in ("python", "c"):
        path = tmp_path / language
        path.write_bytes(b"\xa5" * PAYLOAD_SIZE)
        with FilePayload.open(path, read_only=False) as payload, Volume(payload, extents_of("mixed")) as volume:
            volume.pwrite(bytes(volume.size), 0)
            one: Plaintext = volume if language == "python" else NativeView(volume)
            one.pwrite(random.Random(3).randbytes(volume.size - 1000), 333)
            one.flush()
        found.append(path.read_bytes())
    assert found[0] == found[1]


def test_neighbours_in_one_sector_lose_nothing(volume: Volume) -> None:
    """Threads of both languages write parts of the same sectors: each finds its own bytes, always."""
    plaintexts: list[Plaintext] = [volume, NativeView(volume)]
    width = 100

    def work(number: int) -> None:
        one = plaintexts[number % 2]
        for turn in range(40):
            at = (turn * 8 + number) * width % (volume.size - volume.size % width)
            data = bytes([number * 16 + turn % 16]) * width
            one.pwrite(data, at)
            assert one.pread(width, at) == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_what_is_for_reading_is_not_written(tmp_path: Path) -> None:
    """Nor does its flush ask for anything."""
    path = tmp_path / "payload"
    path.write_bytes(bytes(PAYLOAD_SIZE))
    with FilePayload.open(path, read_only=True) as payload, Volume(payload, extents_of("one")) as volume:
        for one in (volume, NativeView(volume)):
            with pytest.raises(ReadOnlyError):
                one.pwrite(b"x", 0)
            one.flush()
            assert len(one.pread(10, 0)) == 10


def test_a_payload_that_ends_before_is_an_error(plaintext: Plaintext, volume: Volume) -> None:
    """What is not there is not made up."""
    volume._payload.resize(70000)
    with pytest.raises(PayloadError) as caught:
        plaintext.pread(volume.size, 0)
    assert caught.value.errno == errno.EIO


def test_its_end_moves(volume: Volume, plaintext: Plaintext) -> None:
    """Shorter and longer by whole sectors; what was before the end stays."""
    view = plaintext if isinstance(plaintext, NativeView) else None
    unit = volume.sector_size
    before = plaintext.pread(4096, 0)
    for size in (volume.size - unit, volume.size):
        if view:
            view.set_size(size)
        else:
            volume._set_size(size)
        assert plaintext.size == size
        assert plaintext.pread(1, size) == b""
        assert len(plaintext.pread(unit + 5, size - unit)) == unit
        assert plaintext.pread(4096, 0) == before


@given(
    to=st.integers(0, 32).map(lambda sectors: sectors * 512 * 8),
    offset=st.integers(0, 131071),
    size=st.integers(1, 9000),
)
def test_a_border_that_moves_changes_no_place_and_no_iv(to: int, offset: int, size: int) -> None:
    """What is at a byte depends on the extent that it is in, and on nothing else."""
    left = Extent(0, 65536, 8192, 512, 11, None)
    right = Extent(65536, 65536, 300_000, 512, 77, None)
    extents = ExtentMap([left, right])
    extents.move_border(0, to)
    assert extents.last.end == 131072
    for piece in extents.pieces(offset, min(offset + size, 131072)):
        extent = left if piece.start < to else right
        first = piece.start - piece.span.skip
        assert piece.place_of(0) == first + extent.payload_shift
        assert piece._number_of(0) == first // 512 + extent.iv_shift
        start, end = extents.widened(piece.start, piece.end)
        assert start <= first
        assert end >= first + piece.span.covered_size
