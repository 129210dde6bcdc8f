"""Where a volume's segments lie on its payload, and the window of a payload that a volume is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lukshdrfs.errors import DeviceError, HeaderError, UsageError
from lukshdrfs.luks.model import Header, Segment
from lukshdrfs.sectors import round_down

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of the payload is the volume, where the header leaves that open."""

    offset: int | None = None
    """Bytes; only for a header whose own offset is 0."""
    size: int | None = None
    """Bytes; only for a header whose last segment is dynamic."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A segment that is known to lie on the payload."""

    segment: Segment
    start: int
    size: int
    payload_offset: int
    dynamic: bool


def shift_of(header: Header, window: Window) -> int:
    """
    Return how many bytes before the volume are on the payload that its half-converted header does not count.

    Raises UsageError for a window that contradicts the header.
    """
    offset = min(segment.offset for segment in header.segments)
    if window.size is not None:
        raise UsageError(f"--size {window.size}: a conversion that has begun has its size")
    if window.offset is not None and offset not in (0, window.offset):
        raise UsageError(f"--offset {window.offset}: the header itself says {offset}")
    return window.offset if window.offset is not None and offset == 0 else 0


def place(header: Header, payload_size: int, window: Window) -> list[Placed]:
    first, last = header.segments[0], header.segments[-1]
    if window.offset is not None and first.offset not in (0, window.offset):
        raise UsageError(f"--offset {window.offset}: the header itself says {first.offset}")
    if window.size is not None and last.size is not None:
        raise UsageError(f"--size {window.size}: the header itself says how large the volume is")
    shift = window.offset if window.offset is not None and first.offset == 0 else 0
    if shift % first.sector_size or (window.size or 0) % last.sector_size:
        raise UsageError("--offset and --size must be multiples of the sector size")
    placed: list[Placed] = []
    start = 0
    for segment in header.segments:
        offset = segment.offset + shift
        wanted = segment.size
        if wanted is None and window.size is not None:
            wanted = window.size - start
        size = size_on_payload(segment, offset, wanted, payload_size)
        placed.append(Placed(segment, start, size, offset, dynamic=wanted is None))
        start += size
    return placed


def size_on_payload(segment: Segment, offset: int, wanted: int | None, payload_size: int) -> int:
    """Return the bytes of a segment, after checking that the payload has them."""
    there = payload_size - offset
    if wanted is None:
        if there < segment.sector_size:
            raise DeviceError(
                f"the payload has {payload_size} bytes; the header puts the data at byte {offset}, "
                f"in sectors of {segment.sector_size}: not even one fits"
            )
        if tail := there % segment.sector_size:
            log.warning("the payload's last %d bytes are less than a sector and are left out", tail)
        return round_down(there, segment.sector_size)
    if wanted <= 0 and segment.size is None:
        raise UsageError("--size: the volume would be empty")
    if wanted <= 0 or wanted % segment.sector_size:
        raise HeaderError(f"segment {segment.id} has {wanted} bytes, not whole sectors")
    if wanted > there and segment.size is None:
        raise UsageError(f"--size: the payload has {there} bytes from byte {offset} on")
    if wanted > there:
        raise DeviceError(
            f"the payload has {payload_size} bytes; the header's segment {segment.id} needs {offset + wanted}: "
            "is it the header of another volume?"
        )
    return wanted


def window_of(headers: Sequence[Header], window: Window) -> tuple[int, int] | None:
    """Return the part of the payload that any of some headers could mean (offset and size in bytes), None for all."""
    ranges = []
    for header in headers:
        last = header.segments[-1]
        start = min(segment.offset for segment in header.segments) or window.offset or 0
        size = window.size if last.size is None else last.offset - start + last.size
        if last.size is not None and window.offset and header.segments[0].offset == 0:
            size = last.offset + last.size
        if size is None or header.requirements:
            return None  # a conversion may be at work beside its segments, too
        ranges.append((start, start + size))
    start, end = min(first for first, _ in ranges), max(last for _, last in ranges)
    return start, end - start
