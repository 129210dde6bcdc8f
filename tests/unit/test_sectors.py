"""SectorSpan: which whole sectors a byte range needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.sectors import SECTOR_SIZES, SectorSpan, round_down, round_up

offsets = st.integers(0, 1 << 63)
sizes = st.integers(1, 1 << 24) | st.sampled_from([1, 511, 512, 513, 4095, 4096, 4097])
sector_sizes = st.sampled_from(SECTOR_SIZES)


@given(offsets, sizes, sector_sizes)
def test_a_span_is_the_smallest_cover(offset: int, size: int, sector_size: int) -> None:
    """A span covers the byte range, and one sector less at either end would not."""
    span = SectorSpan.covering(offset, size, sector_size)
    start, end = span.offset, span.offset + span.covered_size

    assert start % sector_size == 0
    assert start <= offset < start + sector_size
    assert end - sector_size < offset + size <= end


@given(offsets, sizes, sector_sizes)
def test_skip_and_size_cut_the_range_out_of_the_span(offset: int, size: int, sector_size: int) -> None:
    """`skip` and `size` say where in the span the range is."""
    span = SectorSpan.covering(offset, size, sector_size)

    assert span.offset + span.skip == offset
    assert span.size == size
    assert span.skip + span.size <= span.covered_size


@given(offsets, sizes, sector_sizes)
def test_the_ends_that_a_write_must_read_first_are_told(offset: int, size: int, sector_size: int) -> None:
    """The first and the last sector are partial exactly when the range leaves bytes of them out."""
    span = SectorSpan.covering(offset, size, sector_size)
    first_end = min(offset + size, span.offset + sector_size)
    last_start = max(offset, span.offset + span.covered_size - sector_size)

    first_is_partial = first_end - offset < sector_size
    last_is_partial = offset + size - last_start < sector_size
    if span.count == 1:  # both ends are the same sector: at least one of the two must say so
        assert (span.partial_head or span.partial_tail) == first_is_partial
    else:
        assert span.partial_head == first_is_partial
        assert span.partial_tail == last_is_partial


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 512, (0, 1, False, False)),
        (0, 511, (0, 1, True, True)),
        (1, 511, (0, 1, True, False)),
        (0, 513, (0, 2, False, True)),
        (511, 2, (0, 2, True, True)),
        (512, 1024, (1, 2, False, False)),
    ],
)
def test_known_spans(offset: int, size: int, expected: tuple[int, int, bool, bool]) -> None:
    """First sector, number of sectors, partial head, partial tail of some ranges, worked out by hand."""
    span = SectorSpan.covering(offset, size, 512)

    assert (span.first, span.count, span.partial_head, span.partial_tail) == expected


@given(offsets, sector_sizes)
def test_an_empty_range_on_a_border_needs_no_sector(offset: int, sector_size: int) -> None:
    """Nothing, from a sector's start on, is in no sector, and no end of it is partial."""
    span = SectorSpan.covering(round_down(offset, sector_size), 0, sector_size)

    assert span.count == 0
    assert not span.partial_head
    assert not span.partial_tail


@given(st.integers(0, 1 << 70), st.integers(1, 1 << 20))
def test_rounding_gives_the_nearest_multiples(value: int, unit: int) -> None:
    """Rounding down and up gives the multiples of the unit on either side; a multiple stays as it is."""
    down, up = round_down(value, unit), round_up(value, unit)

    assert down % unit == up % unit == 0
    assert value - unit < down <= value <= up < value + unit
