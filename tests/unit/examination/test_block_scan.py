"""BlockScanner: what C counts and marks is what Python counts and sees."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukshdrfs.examination.block_scan import FEW_VALUES, REGION, REPEATS, ZERO, BlockScanner
from lukshdrfs.payload.holes import BLOCK

SCANNER_SLOTS = 1 << 12


def pearson(values: bytes) -> float:
    """Compute Pearson's statistic from its definition."""
    counts, expected = Counter(values), len(values) / 256
    return sum((counts[value] - expected) ** 2 / expected for value in range(256))


def steps(data: bytes) -> bytes:
    return bytes(here ^ before for here, before in zip(data, b"\0" + data, strict=False))


def scanner() -> BlockScanner:
    return BlockScanner(SCANNER_SLOTS)


@settings(max_examples=30)
@given(st.integers(1, REGION), st.integers(0, 1 << 32))
def test_statistics_are_as_defined(size: int, seed: int) -> None:
    """Of any number of bytes, whole words or not."""
    data = random.Random(seed).randbytes(size)
    found = scanner().scan(memoryview(data))
    assert found.size == size
    assert found.bytes_statistic == pytest.approx(pearson(data))
    assert found.steps_statistic == pytest.approx(pearson(steps(data)))


def test_the_total_is_of_everything() -> None:
    """Regions are added up."""
    look = scanner()
    parts = [random.Random(n).randbytes(5000 + n) for n in range(5)]
    for part in parts:
        look.scan(memoryview(part))
    total = look.total()
    assert total.size == sum(map(len, parts))
    assert total.bytes_statistic == pytest.approx(pearson(b"".join(parts)))
    assert total.steps_statistic == pytest.approx(pearson(b"".join(map(steps, parts))))


@pytest.mark.parametrize(
    ("block", "mark"),
    [
        (bytes(BLOCK), ZERO),
        (bytes(BLOCK - 1) + b"\1", FEW_VALUES | REPEATS),
        (bytes(range(178)) * 2 + bytes(range(156)), FEW_VALUES),
        (bytes(range(179)) * 2 + bytes(range(154)), 0),
        (random.Random(1).randbytes(BLOCK), 0),
        (random.Random(2).randbytes(BLOCK - 16) + random.Random(2).randbytes(16), REPEATS),
    ],
)
def test_marks(block: bytes, mark: int) -> None:
    """Zeros, few values, and 16 bytes that come again, among blocks that have none of it; a part of one has no mark."""
    around = random.Random(3).randbytes(BLOCK)
    found = scanner().scan(memoryview(around + block + block[:100]))
    assert found.marks == (bytes([0, mark]) if mark else b"")


def test_a_repeated_block_is_found_across_regions() -> None:
    """With its number and the earlier one's; zeros do not count."""
    look, source = scanner(), random.Random(4)
    block = source.randbytes(BLOCK)
    look.scan(memoryview(source.randbytes(3 * BLOCK) + block + bytes(BLOCK)))
    assert look.copies(100, 0, 5) == []
    look.scan(memoryview(source.randbytes(BLOCK) + bytes(BLOCK) + block))
    assert look.copies(200, 0, 3) == [(202, 103)]


def test_memory_is_bounded() -> None:
    """With more blocks than there is room for, all copies of some blocks are still found."""
    look = BlockScanner(256)
    data = random.Random(5).randbytes(64 * 1024)
    found = []
    for first in range(0, 16 * 128, 128):
        look.scan(memoryview(data if first == 15 * 128 else random.Random(first).randbytes(REGION)))
        found += look.copies(first, 0, 128)
    assert look.thinned >= 3
    assert found == []
    for first in (5000, 6000):
        look.scan(memoryview(data))
        found += look.copies(first, 0, 128)
    assert 0 < len(found) < 128
    assert all(number - 6000 == earlier % 1000 or number >= 5000 for number, earlier in found)
