"""Volume against a bytearray: any offset, any length, many threads, and a storage that fails."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.memory_payload import MemoryPayload

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import LukshdrfsError, PayloadError, ReadOnlyError
from lukshdrfs.payload import Payload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR_SIZES
from lukshdrfs.volume import Extent, Volume

KEY = random.Random(1).randbytes(64)
TIB = 1 << 40


def cipher(text: str, sector_size: int) -> SectorCipher:
    """Return a cipher with a key of its largest size."""
    spec = CipherSpec.parse(text)
    return SectorCipher(spec, SecretBytes.copy_of(KEY[: spec.key_sizes[-1]]), sector_size)


def volume_on(
    payload: Payload, size: int, text: str = "aes-xts-plain64", sector_size: int = 4096, offset: int = 0
) -> Volume:
    """Return a volume of one segment."""
    return Volume(payload, [Extent(0, size, offset, sector_size, 0, cipher(text, sector_size))])


def extents_of(layout: str) -> list[Extent]:
    """Return a volume of about 40 KiB: one segment, or several of several kinds out of order."""
    if layout != "segments":
        text, _, sector_size = layout.rpartition("-")
        return [Extent(0, 40960, 4096, int(sector_size), 0, cipher(text, int(sector_size)))]
    return [
        Extent(0, 12288, 32768, 4096, 0, cipher("aes-xts-plain64", 4096)),
        Extent(12288, 1536, 0, 512, 0, None),
        Extent(13824, 512, 4096, 512, 24, cipher("aes-cbc-essiv:sha256", 512)),
        Extent(14336, 8192, 16384, 2048, 1 << 40, cipher("aes-xts-plain64", 2048)),
        Extent(22528, 4096, 8192, 4096, 0, None),
        Extent(26624, 512, 49152, 512, 99, cipher("aes-xts-plain64", 512)),
    ]


LAYOUTS = ("aes-xts-plain64-512", "aes-xts-plain64-1024", "aes-cbc-essiv:sha256-2048", "aes-xts-plain64-4096",
           "aes-cbc-plain64-4096", "aes-ecb-512", "segments")  # fmt: skip
PAYLOAD_SIZE = 65536


class VolumeAndModel(RuleBasedStateMachine):
    """A volume of any layout, and a bytearray of what must be in it."""

    @initialize(layout=st.sampled_from(LAYOUTS))
    def open(self, layout: str) -> None:
        self.extents = extents_of(layout)
        self.payload = MemoryPayload(PAYLOAD_SIZE)
        self.volume = Volume(self.payload, self.extents)
        self.model = bytearray(self.volume.size)
        self.volume.pwrite(bytes(self.model), 0)


class VolumeIsBytes(VolumeAndModel):
    """A volume does what a bytearray of its size does, and the payload outside of it is never touched."""

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        offset, size = self.draw_range(data)
        content = random.Random(data.draw(st.integers(0, 1 << 16))).randbytes(size)
        fits = max(0, min(size, len(self.model) - offset))
        if size and not fits:
            with pytest.raises(PayloadError) as caught:
                self.volume.pwrite(content, offset)
            assert caught.value.errno == errno.ENOSPC
        else:
            kind = data.draw(st.sampled_from([bytes, bytearray, memoryview]))
            assert self.volume.pwrite(kind(content), offset) == fits
            self.model[offset : offset + fits] = content[:fits]

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset, size = self.draw_range(data)
        assert self.volume.pread(size, offset) == self.model[offset : offset + size]

    @rule(data=st.data())
    def read_into_a_buffer(self, data: st.DataObject) -> None:
        offset, size = self.draw_range(data)
        buffer = bytearray(b"?" * size)
        count = self.volume.read_into(memoryview(buffer), offset)
        assert bytes(buffer) == bytes(self.model[offset : offset + size]) + b"?" * (size - count)

    def draw_range(self, data: st.DataObject) -> tuple[int, int]:
        """Return an offset and a size, often at the edges of sectors, segments and the volume."""
        size = len(self.model)
        edges = {edge for extent in self.extents for edge in (extent.start, extent.end)} | {4096, 8192, size - 512}
        near = st.sampled_from(sorted(edges)).flatmap(lambda edge: st.integers(max(0, edge - 3), edge + 3))
        offset = data.draw(near | st.integers(0, size + 10))
        end = data.draw(near | st.integers(offset, size + 600) | st.integers(offset, offset + 700))
        return offset, max(0, end - offset)

    @invariant()
    def outside_is_untouched(self) -> None:
        stored = bytearray(self.payload.content())
        for extent in self.extents:
            stored[extent.payload_offset : extent.payload_offset + extent.size] = bytes(extent.size)
        assert not any(stored)

    def teardown(self) -> None:
        if not hasattr(self, "volume"):
            return
        assert self.volume.pread(1 << 20, 0) == self.model
        for extent in self.extents:  # each segment's ciphertext is that of its plaintext as a whole
            expected = bytearray(self.model[extent.start : extent.end])
            if extent.cipher:
                extent.cipher.encrypt(expected, extent.iv_tweak)
            assert self.payload.content(extent.payload_offset, extent.size) == expected


TestVolumeIsBytes = VolumeIsBytes.TestCase
TestVolumeIsBytes.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


class VolumeOnBadStorage(VolumeAndModel):
    """Where the storage fails now and then, who asked is told, and no byte outside of what was asked for changes."""

    @rule(
        data=st.data(),
        what=st.sampled_from(["before_read", "before_write", "half_way"]),
        number=st.sampled_from([errno.EIO, errno.ENOSPC, errno.ENOMEM]),
        after=st.integers(0, 4),
    )
    def write(self, data: st.DataObject, what: str, number: int, after: int) -> None:
        offset = data.draw(st.integers(0, len(self.model) - 1))
        content = random.Random(data.draw(st.integers(0, 1 << 16))).randbytes(
            data.draw(st.integers(1, len(self.model) - offset))
        )
        before, told = bytes(self.model), None
        with self.failing(what, number, after):
            try:
                assert self.volume.pwrite(content, offset) == len(content)
            except PayloadError as error:
                told = error.errno
        if told is None:
            self.model[offset : offset + len(content)] = content
            return
        assert told == number
        # of what was asked for, nothing is certain but that it can be read; a sector belongs together
        self.model = bytearray(self.volume.pread(len(self.model), 0))
        assert len(self.model) == len(before)
        for extent in self.extents:
            for start in range(extent.start, extent.end, extent.sector_size):
                end = start + extent.sector_size
                if end <= offset or start >= offset + len(content):
                    assert self.model[start:end] == before[start:end]

    @rule(data=st.data(), number=st.sampled_from([errno.EIO, errno.ENODEV]), after=st.integers(0, 3))
    def read(self, data: st.DataObject, number: int, after: int) -> None:
        offset = data.draw(st.integers(0, len(self.model)))
        size, told = data.draw(st.integers(0, len(self.model))), None
        with self.failing("before_read", number, after):
            try:
                assert self.volume.pread(size, offset) == self.model[offset : offset + size]
            except PayloadError as error:
                told = error.errno
        assert told in (None, number)

    @invariant()
    def all_of_it_is_there(self) -> None:
        assert self.volume.pread(len(self.model), 0) == self.model

    @contextlib.contextmanager
    def failing(self, what: str, number: int, after: int) -> Iterator[None]:
        """Have the storage fail from its nth access of a kind on."""
        accesses = itertools.count()

        def fail(*_place: int) -> None:
            if next(accesses) >= after:
                raise PayloadError("bad storage", number)

        usual = getattr(self.payload, what)
        setattr(self.payload, what, fail)
        try:
            yield
        finally:
            setattr(self.payload, what, usual)


TestVolumeOnBadStorage = VolumeOnBadStorage.TestCase
TestVolumeOnBadStorage.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_reads_at_and_past_the_end() -> None:
    """A read across the end is short, one at or past it is empty; so is one of nothing."""
    volume = volume_on(MemoryPayload(8192), 8192)

    assert len(volume.pread(5000, 4096)) == 4096
    assert len(volume.pread(2, 8191)) == 1
    for offset in (8192, 8193, 1 << 62):
        assert volume.pread(10, offset) == b""
    assert volume.pread(0, 0) == b""


def test_writes_at_and_past_the_end() -> None:
    """A write across the end is short; one at or past it has no space; one of nothing always works."""
    payload = MemoryPayload(8192)
    volume = volume_on(payload, 8192)

    assert volume.pwrite(b"x" * 5000, 4096) == 4096
    for offset in (8192, 8193, 1 << 62):
        with pytest.raises(PayloadError) as caught:
            volume.pwrite(b"x", offset)
        assert caught.value.errno == errno.ENOSPC
        assert volume.pwrite(b"", offset) == 0


@pytest.mark.parametrize("offset", [-1, -4096, -(1 << 62)])
def test_negative_offsets_are_invalid(offset: int) -> None:
    """Nothing is before byte 0: EINVAL, and nothing is written."""
    payload = MemoryPayload(8192)
    volume = volume_on(payload, 8192)
    with pytest.raises(LukshdrfsError) as read_error:
        volume.read_into(memoryview(bytearray(10)), offset)
    with pytest.raises(LukshdrfsError) as write_error:
        volume.pwrite(b"x" * 5000, offset)

    assert read_error.value.errno == write_error.value.errno == errno.EINVAL
    assert payload.content() == bytes(8192)


def test_a_read_only_payload_makes_a_read_only_volume() -> None:
    """Every write is EROFS, before the storage is asked; reading works; the end does not flush."""
    payload = MemoryPayload(8192, read_only=True)
    with volume_on(payload, 8192) as volume:
        assert volume.read_only
        for data, offset in ((b"x", 0), (b"", 0), (b"x", 8192), (b"x", -1)):
            with pytest.raises(ReadOnlyError) as caught:
                volume.pwrite(data, offset)
            assert caught.value.errno == errno.EROFS
        assert len(volume.pread(10, 0)) == 10
    assert payload.flushes == 0
    assert payload.closed


def test_the_end_flushes_and_closes() -> None:
    """Leaving the `with` block flushes the payload once and lets go of it; the cipher is closed too."""
    payload = MemoryPayload(8192)
    with volume_on(payload, 8192) as volume:
        volume.pwrite(b"x", 0)
        assert payload.flushes == 0
    assert payload.flushes == 1
    assert payload.closed
    with pytest.raises(LukshdrfsError, match="closed"):
        volume.pread(1, 0)
    volume.close()


def test_a_flush_is_the_payloads() -> None:
    """`flush` returns when the payload's has."""
    payload = MemoryPayload(8192)
    volume_on(payload, 8192).flush()

    assert payload.flushes == 1


def test_the_largest_sector_is_the_volumes() -> None:
    """A volume of several segments has the largest of their sector sizes, for alignment."""
    assert Volume(MemoryPayload(PAYLOAD_SIZE), extents_of("segments")).sector_size == 4096


# --- what is asked of the storage ------------------------------------------------------------------------------------


@given(st.integers(0, 40000), st.integers(1, 20000), st.sampled_from(SECTOR_SIZES))
def test_a_write_reads_only_sectors_that_it_keeps_a_part_of(offset: int, size: int, sector_size: int) -> None:
    """A write of whole sectors reads nothing; a ragged one reads its first and its last sector, each once."""
    payload = MemoryPayload(65536)
    volume = volume_on(payload, 65536, sector_size=sector_size)
    reads: list[tuple[int, int]] = []
    writes: list[tuple[int, int]] = []
    payload.before_read = lambda *request: reads.append(request)
    payload.before_write = lambda *request: writes.append(request)
    volume.pwrite(bytes(size), offset)

    first, last = offset // sector_size * sector_size, (offset + size - 1) // sector_size * sector_size
    partial = set()
    if offset % sector_size or (first == last and size < sector_size):
        partial.add(first)
    if (offset + size) % sector_size:
        partial.add(last)
    assert sorted(reads) == sorted((at, sector_size) for at in partial)
    assert writes == [(first, last + sector_size - first)]


def failing(number: int) -> PayloadError:
    """Return what a storage answers."""
    return PayloadError("the storage says no", number)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENODEV, errno.EREMOTEIO])
@pytest.mark.parametrize(("offset", "size"), [(100, 10), (0, 5000), (4000, 5000), (100, 20000)])
def test_a_failed_inner_read_leaves_the_payload_untouched(number: int, offset: int, size: int) -> None:
    """If a sector of which a part is kept cannot be read, nothing is written, and the storage's errno comes out."""
    payload = MemoryPayload(65536)
    volume = volume_on(payload, 65536)
    volume.pwrite(b"before" * 10000, 0)
    before = payload.content()
    last = (offset + size) // 4096 * 4096

    def fail(at: int, _size: int) -> None:
        if at == last:
            raise failing(number)

    payload.before_read = fail
    with pytest.raises(PayloadError) as caught:
        volume.pwrite(bytes(size), offset)
    assert caught.value.errno == number
    assert payload.content() == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_write_passes_its_errno_on(number: int) -> None:
    """What the storage answers to a write is what the writer gets; the volume works on afterwards."""
    payload = MemoryPayload(65536)
    volume = volume_on(payload, 65536)

    def fail(_offset: int, _size: int) -> None:
        raise failing(number)

    payload.before_write = fail
    with pytest.raises(PayloadError) as caught:
        volume.pwrite(b"x", 5)
    assert caught.value.errno == number
    payload.before_write = lambda _offset, _size: None
    assert volume.pwrite(b"x", 5) == 1, "no lock is left behind"
    assert volume.pread(1, 5) == b"x"


def test_a_failed_read_passes_its_errno_on() -> None:
    """What the storage answers to a read is what the reader gets, and the volume works on."""
    payload = MemoryPayload(65536)
    volume = volume_on(payload, 65536)

    def fail(_offset: int, _size: int) -> None:
        raise failing(errno.ENODEV)

    payload.before_read = fail
    with pytest.raises(PayloadError) as caught:
        volume.pread(10, 0)
    assert caught.value.errno == errno.ENODEV
    payload.before_read = lambda _offset, _size: None
    volume.pwrite(b"x", 0)


def test_a_payload_that_became_shorter_is_an_error() -> None:
    """A payload that ends before the volume does gives EIO, never bytes that were not there."""
    volume = volume_on(MemoryPayload(8192), 16384)

    assert len(volume.pread(8192, 0)) == 8192
    with pytest.raises(PayloadError) as caught:
        volume.pread(100, 8190)
    assert caught.value.errno == errno.EIO


# --- threads ---------------------------------------------------------------------------------------------------------


def let_others_run() -> None:
    """Hand the interpreter over, for long enough that the others come to where they would disturb."""
    time.sleep(0.0002)


@pytest.mark.parametrize("text", ["aes-xts-plain64", "aes-cbc-plain64"])
def test_writes_to_parts_of_one_sector_are_all_kept(text: str) -> None:
    """Eight threads writing to eight parts of one sector of 4096 bytes lose nothing of each other's."""
    payload = MemoryPayload(4096)
    payload.half_way = let_others_run
    volume = volume_on(payload, 4096, text)
    volume.pwrite(bytes(4096), 0)
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        for turn in range(1, 26):
            volume.pwrite(bytes([number * 26 + turn]) * 500, number * 512 + 6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    expected = b"".join(bytes(6) + bytes([number * 26 + 25]) * 500 + bytes(6) for number in range(8))
    assert volume.pread(4096, 0) == expected


def test_overlapping_writes_end_as_one_of_the_orders() -> None:
    """Of two writes that overlap in one sector, one is behind the other as a whole."""
    payload = MemoryPayload(8192)
    payload.half_way = let_others_run
    volume = volume_on(payload, 8192)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(30):
            volume.pwrite(bytes(8192), 0)
            list(pool.map(lambda write: volume.pwrite(*write), [(b"a" * 3000, 0), (b"b" * 3000, 1000)]))
            found = volume.pread(4096, 0)
            assert found in (
                b"a" * 3000 + b"b" * 1000 + bytes(96),
                b"a" * 1000 + b"b" * 3000 + bytes(96),
            )


@pytest.mark.parametrize("text", ["aes-cbc-plain64", "aes-cbc-essiv:sha256", "aes-xts-plain64"])
def test_a_reader_never_sees_half_a_sector(text: str) -> None:
    """While a sector is written over and over, a read of it, or of a part, gives one whole content, never a mix."""
    payload = MemoryPayload(4096)
    payload.half_way = let_others_run
    volume = volume_on(payload, 4096, text)
    contents = [bytes([letter]) * 4096 for letter in b"abc"]
    volume.pwrite(contents[0], 0)
    done = threading.Event()

    def write() -> None:
        for turn in range(150):
            volume.pwrite(contents[turn % 3], 0)
        done.set()

    def read(part: slice) -> int:
        count = 0
        while not done.is_set():
            found = volume.pread(part.stop - part.start, part.start)
            assert found in [content[part] for content in contents]
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, slice(0, 4096)), pool.submit(read, slice(1000, 3100))]
        write()
        assert sum(reader.result() for reader in readers) > 0


def test_reads_of_one_place_run_at_the_same_time() -> None:
    """Readers do not wait for each other: all of four are in the storage at once."""
    payload = MemoryPayload(4096)
    volume = volume_on(payload, 4096)
    meeting = threading.Barrier(4, timeout=20)
    payload.before_read = lambda _offset, _size: void(meeting.wait())
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: volume.pread(10, 0), range(4)))) == 4


def test_writes_to_two_sectors_run_at_the_same_time() -> None:
    """Writers to different sectors do not wait for each other."""
    payload = MemoryPayload(8192)
    volume = volume_on(payload, 8192)
    meeting = threading.Barrier(2, timeout=20)
    payload.before_write = lambda _offset, _size: void(meeting.wait())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda at: volume.pwrite(b"x", at), [4095, 4096])) == [1, 1]


def void(_value: object) -> None:
    """Drop a value."""


# --- far into a payload ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["aes-xts-plain", "aes-xts-plain64", "aes-cbc-plain", "aes-cbc-plain64"])
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_around_2_tib(text: str, sector_size: int) -> None:
    """Writes at 2 TiB ± 1 sector come back, and under `plain`, only, their IVs start over at 2 TiB."""
    border = 2 * TIB
    payload = MemoryPayload(border + (1 << 20))
    volume = volume_on(payload, payload.size, text, sector_size)
    data = random.Random(2).randbytes(3 * sector_size)
    for offset in (border - sector_size, border - 1, border, border + 1, border + sector_size):
        volume.pwrite(data, offset)
        assert volume.pread(len(data), offset) == data
        assert volume.pread(10, offset + 5) == data[5:15]

    for distance in (0, sector_size):
        zeros = bytes(sector_size)
        volume.pwrite(zeros, distance)
        volume.pwrite(zeros, border + distance)
        same = payload.content(distance, sector_size) == payload.content(border + distance, sector_size)
        assert same == text.endswith("plain")
    volume.pwrite(zeros, border - sector_size)
    assert payload.content(border - sector_size, sector_size) != payload.content(border, sector_size)


def test_the_iv_of_a_segment_may_wrap() -> None:
    """An `iv_tweak` at the end of the 64-bit numbers is added modulo 2^64, and what is written comes back."""
    extent = Extent(0, 8192, 0, 512, (1 << 64) - 3, cipher("aes-xts-plain64", 512))
    payload = MemoryPayload(8192)
    volume = Volume(payload, [extent])
    volume.pwrite(bytes(8192), 0)
    volume.pwrite(bytes(512), 3 * 512)

    first = MemoryPayload(512)
    volume_on(first, 512, sector_size=512).pwrite(bytes(512), 0)
    assert payload.content(3 * 512, 512) == first.content(), "the fourth sector has the number 0"
    assert volume.pread(8192, 0) == bytes(8192)


# --- another size ----------------------------------------------------------------------------------------------------


def growing(payload: MemoryPayload, size: int = 40960) -> Volume:
    """Return a volume that reaches as far as its payload does."""
    return Volume(payload, [Extent(0, size, 4096, 4096, 0, cipher("aes-xts-plain64", 4096), dynamic=True)])


def test_lengthening_shows_when_it_is_filled_and_flushed() -> None:
    """While it is filled, the volume has its old size; afterwards it has zeros, which are on the storage."""
    payload = MemoryPayload(4096 + 40960)
    volume = growing(payload)
    steps = []

    def go_on(done: int) -> bool:
        steps.append((done, volume.size, payload.flushes))
        return True

    volume.lengthen(3 << 20, go_on=go_on)
    assert [size for _, size, _ in steps] == [40960] * len(steps)
    assert [flushes for _, _, flushes in steps] == [0] * len(steps)
    assert steps[-1][0] == (3 << 20) - 40960
    assert payload.flushes == 1
    assert volume.size == 3 << 20
    assert volume.pread(3 << 20, 40960) == bytes((3 << 20) - 40960)
    assert payload.size == 4096 + (3 << 20)


@pytest.mark.parametrize("why", ["told", "raised", "storage"])
def test_lengthening_that_ends_early_changes_nothing(why: str) -> None:
    """Whoever ends it, volume and payload are as long as they were."""
    payload = MemoryPayload(4096 + 40960 + 17)  # with some bytes that are no sector
    volume = growing(payload)
    volume.pwrite(b"stays", 40955)

    def go_on(done: int) -> bool:
        if why == "raised" and done > 1 << 20:
            raise KeyboardInterrupt
        if why == "storage":
            payload.before_write = lambda _offset, _size: (_ for _ in ()).throw(PayloadError("full", errno.ENOSPC))
        return why != "told"

    with pytest.raises((PayloadError, KeyboardInterrupt)):
        volume.lengthen(8 << 20, go_on=go_on)
    assert (volume.size, payload.size) == (40960, 4096 + 40960 + 17)
    assert volume.pread(5, 40955) == b"stays"


def test_lengthening_leaves_no_part_of_the_payload_out() -> None:
    """A volume takes all that its payload has, so less is refused, and not cut off from the payload."""
    payload = MemoryPayload(4096 + 81920)
    volume = growing(payload)

    assert (volume.room(), volume.size) == (81920, 40960)
    with pytest.raises(PayloadError) as caught:
        volume.lengthen(65536)
    assert caught.value.errno == errno.EINVAL
    assert payload.size == 4096 + 81920
    volume.lengthen(81920, fill=False)
    assert volume.size == 81920
    assert payload.content(4096 + 40960, 40960) == bytes(40960), "unwritten, as it was"
