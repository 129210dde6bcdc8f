"""examine(): what random data are, and what are not; how often it is wrong."""

from __future__ import annotations

import base64
import itertools
import math
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_payload import MemoryPayload

from lukshdrfs.errors import PayloadError
from lukshdrfs.examination.block_scan import REGION, BlockScanner
from lukshdrfs.examination.chi_square import two_sided
from lukshdrfs.examination.examine import FALSE_ALARMS, examine
from lukshdrfs.examination.region_map import Kind, RegionMap
from lukshdrfs.examination.report import Examination
from lukshdrfs.examination.sampling import EDGE, PIECES, Sample
from lukshdrfs.examination.surroundings import size_findings
from lukshdrfs.payload import FilePayload
from lukshdrfs.payload.holes import Holes

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
WORDS = b"the payload is as random as its cipher makes it, and not a bit more; what has a name gives itself away. "


class BytesPayload(MemoryPayload):
    """Fulfils Payload with bytes, at their speed."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self._data = data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]


def subjects(seen: Examination) -> set[str]:
    return {finding.subject for finding in seen.findings if finding.severity == "error"}


def with_region(data: bytes, offset: int, part: bytes) -> bytes:
    return data[:offset] + part + data[offset + len(part) :]


def text(size: int) -> bytes:
    """Return sentences, no two of them alike."""
    lines = (b"%d: %b%x\n" % (n, WORDS, n * 7919) for n in range(size // len(WORDS) + 1))
    return b"".join(lines)[:size]


def ecb_like(size: int) -> bytes:
    """Return blocks of 16 random bytes of which every 20th is one that was there before."""
    source = random.Random(6)
    again = source.randbytes(16)
    return b"".join(again if n % 20 == 0 else source.randbytes(16) for n in range(size // 16))


def too_even(size: int) -> bytes:
    """Return all byte values in a random order, then again in another: each is there equally often."""
    source = random.Random(12)
    return b"".join(bytes(source.sample(range(256), 256)) for _ in range(size // 256))


RANDOM = random.Random(7).randbytes(2 * MIB)


def test_random_data_pass() -> None:
    """No error, and a map of one kind."""
    seen = examine(BytesPayload(RANDOM))
    assert not seen.gives_itself_away
    assert set(seen.map.cells) == {Kind.RANDOM}
    assert (seen.size, seen.read) == (len(RANDOM), len(RANDOM))


@pytest.mark.parametrize(
    ("offset", "part", "subject", "kind"),
    [
        pytest.param(MIB + PAGE, bytes(PAGE), "zero blocks", Kind.ZERO, id="one zeroed page"),
        pytest.param(MIB + PAGE, bytes(512), "zero blocks", Kind.ZERO, id="one zeroed sector"),
        pytest.param(MIB + PAGE, RANDOM[:PAGE], "repeated blocks", Kind.REPEATED, id="one repeated page"),
        pytest.param(MIB + 512, RANDOM[1024:1536], "repeated blocks", Kind.REPEATED, id="one repeated sector"),
        pytest.param(MIB, text(REGION), "low entropy", Kind.UNEVEN, id="a region of text"),
        pytest.param(MIB + 512, text(512), "low entropy", Kind.UNEVEN, id="a sector of text"),
        pytest.param(MIB, base64.b64encode(RANDOM[:49152]), "low entropy", Kind.UNEVEN, id="a region of base64"),
        pytest.param(MIB, ecb_like(REGION), "repeated bytes", Kind.REPEATED, id="a region as of ECB"),
        pytest.param(
            MIB,
            bytes(max(0, byte - 5) for byte in RANDOM[:REGION]),
            "frequencies",
            Kind.UNEVEN,
            id="uneven bytes",
        ),
        pytest.param(MIB, too_even(REGION), "frequencies", Kind.UNEVEN, id="too even"),
    ],
)
def test_one_place_gives_it_away(offset: int, part: bytes, subject: str, kind: Kind) -> None:
    """Each of these is found, where it is, and shown there in the map; all else is random."""
    seen = examine(BytesPayload(with_region(RANDOM, offset, part)))
    assert seen.gives_itself_away
    assert subject in subjects(seen)
    finding = next(finding for finding in seen.findings if finding.subject == subject)
    assert offset // REGION * REGION <= finding.places[0][0] < offset + len(part)
    cell = offset // REGION
    assert seen.map.cells[cell] >= kind
    assert set(seen.map.cells[:cell] + seen.map.cells[cell + 1 :]) == {Kind.RANDOM}


def test_the_place_is_exact() -> None:
    """Offset and size of what is zero are those of the zeros."""
    seen = examine(BytesPayload(with_region(RANDOM, MIB + PAGE, bytes(PAGE))))
    zeros = next(finding for finding in seen.findings if finding.subject == "zero blocks")
    assert zeros.places == ((MIB + PAGE, PAGE),)


def test_a_small_bias_of_everything() -> None:
    """That no region shows by itself, all together do: here one byte in 1000 is a copy of the one before."""
    source = random.Random(8)
    data = bytearray(source.randbytes(4 * MIB))
    for at in range(1000, len(data), 1000):
        data[at] = data[at - 1]
    seen = examine(BytesPayload(bytes(data)))
    assert subjects(seen) == {"frequencies"}
    assert all(test.failed == 0 for test in seen.tests)
    assert seen.tests[1].total_p < seen.level < seen.tests[0].total_p


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Of 200 random payloads of 2 to 4 MiB, two or more fail with a probability of 0.0002."""
    source = random.Random(9)
    alarms = 0
    for _ in range(200):
        size = source.randrange(2 * MIB, 4 * MIB)
        alarms += examine(BytesPayload(source.randbytes(size))).gives_itself_away
    assert alarms <= 1
    assert FALSE_ALARMS == 1e-4


@pytest.mark.parametrize("size", [PAGE, REGION])
def test_p_values_of_random_data_are_uniform(size: int) -> None:
    """By Kolmogorov and Smirnov's bound (Massart's form), which chance oversteps once in a million times."""
    source, look = random.Random(10), BlockScanner(256)
    scans = [look.scan(memoryview(source.randbytes(size))) for _ in range(1500)]
    bound = math.sqrt(math.log(2 / 1e-6) / (2 * len(scans)))
    for values in ([scan.bytes_statistic for scan in scans], [scan.steps_statistic for scan in scans]):
        p_values = sorted(two_sided(value, 255) for value in values)
        distance = max(max(p - n / len(scans), (n + 1) / len(scans) - p) for n, p in enumerate(p_values))
        assert distance < bound


@settings(max_examples=40)
@given(st.integers(0, 2 * MIB), st.integers(0, 1 << 32), st.binary(max_size=2000), st.integers(0, 400))
def test_no_bytes_are_an_error(size: int, seed: int, part: bytes, times: int) -> None:
    """Whatever there is, and however long it is, there is a verdict; places are in the payload."""
    data = (part * times + random.Random(seed).randbytes(max(0, size - len(part) * times)))[:size]
    seen = examine(BytesPayload(data))
    assert seen.size == len(data)
    for finding in seen.findings:
        assert finding.text
        assert all(0 <= offset < offset + length <= len(data) for offset, length in finding.places)
    assert all(0 <= test.least_p <= 1 and 0 <= test.total_p <= 1 for test in seen.tests)


def test_holes_are_found_and_not_read(tmp_path: Path) -> None:
    """What was never written is counted as such, not as zeros; data between holes are looked at."""
    path = tmp_path / "payload.img"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 8 * MIB)
        os.pwrite(stream.fileno(), RANDOM[:MIB], 2 * MIB)
        os.pwrite(stream.fileno(), RANDOM[MIB : MIB + PAGE], 5 * MIB + 2 * PAGE)
        os.posix_fallocate(stream.fileno(), 6 * MIB, MIB)
    with FilePayload.open(path, read_only=True) as payload:
        seen = examine(payload)
    assert subjects(seen) == {"holes"}
    assert seen.findings[0].places[:2] == ((0, 2 * MIB), (3 * MIB, 2 * MIB + 2 * PAGE))
    assert f"{7 * MIB - PAGE} bytes" in seen.findings[0].text
    assert seen.map.cells.count(Kind.RANDOM) == MIB // REGION


def test_holes_are_cut_out_of_ranges() -> None:
    """As by a bytearray in which they are marked."""
    source = random.Random(11)
    for _ in range(200):
        holes, at, model = Holes(), 0, bytearray(300)
        while (start := at + source.randrange(40)) < 280:
            at = start + source.randrange(1, 20)
            holes.add(start, at)
            model[start:at] = b"h" * (at - start)
            at += 1
        first, last = sorted((source.randrange(300), source.randrange(300)))
        found = {byte for start, end in holes.data_between(first, last) for byte in range(start, end)}
        assert found == {byte for byte in range(first, last) if not model[byte]}


def test_a_sample_is_bounded_and_spread() -> None:
    """Of a large payload: both ends, never twice the same, and nothing as large as two parts is passed over."""
    for size in (258 * MIB + 1, 300 * MIB, 5 * GIB + 12345, 1 << 44):
        sample = Sample(size)
        regions = list(sample)
        assert sample.size <= 259 * MIB
        assert len(regions) <= sample.regions
        assert (regions[0][0], regions[-1][1]) == (0, size)
        assert regions[-1][0] <= size - REGION + EDGE
        gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(regions)]
        assert min(gaps) >= 0
        assert max(gaps) < 2 * size // PIECES
        assert list(Sample(size)) == regions
    assert Sample(5 * GIB, whole=True).size == 5 * GIB


def test_storage_that_fails_is_a_payload_error() -> None:
    """It is not taken for data."""
    payload = MemoryPayload(MIB)

    def fail(offset: int, size: int) -> None:
        raise PayloadError("broken")

    payload.before_read = fail
    with pytest.raises(PayloadError, match="broken"):
        examine(payload)


def test_progress_ends_at_the_whole() -> None:
    """It only grows."""
    heard: list[int] = []
    examine(BytesPayload(RANDOM), progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == len(RANDOM)


@pytest.mark.parametrize(
    ("size", "severities"),
    [
        (64 * MIB, []),
        (3 * GIB, []),
        (64 * MIB + 1, ["warning"]),
        (64 * MIB + 512, ["note"]),
        (2 * GIB + 16 * MIB, ["warning"]),
        (80 * MIB, ["warning"]),
        (100 * MIB, []),
        (0, []),
    ],
)
def test_what_sizes_suggest(size: int, severities: list[str]) -> None:
    """Odd ones, and a round one with a header's size added; never an error."""
    found = size_findings(size, {16 * MIB: "a header"})
    assert [finding.severity for finding in found] == severities


def test_a_map_has_few_cells() -> None:
    """However large the payload; a cell has the most striking of what is in it."""
    region_map = RegionMap(1 << 44)
    assert len(region_map.cells) == 1 << 16
    region_map.mark(0, 1 << 44, Kind.RANDOM)
    region_map.mark(10, 20, Kind.ZERO)
    region_map.mark(0, region_map.cell_size, Kind.UNEVEN)
    assert list(region_map.cells[:2]) == [Kind.ZERO, Kind.RANDOM]
    assert region_map.shrunk(64) == bytes([Kind.ZERO]) + bytes([Kind.RANDOM]) * 63
    assert RegionMap(0).shrunk(64) == b""
