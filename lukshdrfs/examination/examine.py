"""
Whether a payload can be told from random bytes: never-written parts, blocks that chance does not make, frequencies.

Two statistics are taken of each region of 64 KiB: of its byte values, and of the exclusive or of each byte with the one
before it. In random data both are counts of independent, equally likely values (the second too: it is a bijection of
the first), at least 16 of each to be expected, so that Pearson's statistic has the chi-square distribution with 255
degrees of freedom. They are taken of everything together, too. Too uneven is as telling as too even, so tests are
two-sided. The level is divided by the number of all tests (Bonferroni), which holds however they depend on each other:
a random payload of any size fails with a probability of FALSE_ALARMS at most. What else counts adds
less than a hundredth of that: see block_scan.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

from lukshdrfs.examination.block_scan import FEW_VALUES, REGION, REPEATS, ZERO, BlockScanner, RegionScan
from lukshdrfs.examination.chi_square import critical_values, two_sided
from lukshdrfs.examination.region_map import Kind, RegionMap
from lukshdrfs.examination.report import Examination, FrequencyTest, percent
from lukshdrfs.examination.sampling import Sample
from lukshdrfs.findings import Finding
from lukshdrfs.payload.base import Payload
from lukshdrfs.payload.holes import BLOCK, find_holes

FALSE_ALARMS = 1e-4
"""How often random data are taken for something else: one payload in ten thousand, whatever its size."""

_PAYLOADS_A_FALSE_ALARM = round(1 / FALSE_ALARMS)

LEAST_TESTED = 4096
"""Bytes of a region below which its frequencies say too little to be tested."""

_FREEDOM = 255
_PLACES = 16
_PAGE = 4096


def examine(
    payload: Payload, *, whole: bool = False, progress: Callable[[int], None] = lambda _done: None
) -> Examination:
    """
    Look at a payload's bytes: at all, with `whole`, else at up to 258 MiB (see Sample). Takes about 50 MiB of memory.

    `progress` hears how many bytes of Sample's are done. Raises PayloadError if it cannot be read.
    """
    return _Examiner(payload, Sample(payload.size, whole=whole)).run(progress)


@dataclass(slots=True)
class _Places:
    """Places that are alike, neighbouring ones joined; only the first ones are kept."""

    size: int = 0
    count: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)
    _end: int = -1

    def add(self, offset: int, size: int) -> None:
        if offset != self._end:
            self.count += 1
        if offset == self._end and self.count <= _PLACES:
            self.first[-1] = (self.first[-1][0], self.first[-1][1] + size)
        elif offset != self._end and self.count <= _PLACES:
            self.first.append((offset, size))
        self.size += size
        self._end = offset + size

    def words(self, share_of: int) -> str:
        where = f"at byte {self.first[0][0]}" if self.count == 1 else f"in {self.count} places, {_first(self.first)}"
        return f"{self.size} bytes ({percent(self.size, share_of)}) {where}"


def _first(places: list[tuple[int, int]]) -> str:
    return f"the first at byte {places[0][0]}"


@dataclass(slots=True)
class _Statistic:
    """One statistic over the regions."""

    name: str
    bounds: tuple[float, float]
    lowest: tuple[float, int | None] = (float(_FREEDOM), None)
    highest: tuple[float, int | None] = (float(_FREEDOM), None)
    failures: int = 0

    def take(self, value: float, offset: int) -> bool:
        """Take a region's value; tell whether it passes."""
        self.lowest = min(self.lowest, (value, offset), key=lambda item: item[0])
        self.highest = max(self.highest, (value, offset), key=lambda item: item[0])
        passes = self.bounds[0] <= value <= self.bounds[1]
        self.failures += not passes
        return passes

    def result(self, total: float | None) -> FrequencyTest:
        sides = [(two_sided(value, _FREEDOM), at) for value, at in (self.lowest, self.highest) if at is not None]
        least_p, offset = min(sides, default=(1.0, None), key=lambda side: side[0])
        total_p = 1.0 if total is None else two_sided(total, _FREEDOM)
        return FrequencyTest(self.name, least_p, offset, total_p, self.failures)


class _Examiner:
    """One look at a payload."""

    def __init__(self, payload: Payload, sample: Sample) -> None:
        self._payload = payload
        self._sample = sample
        self._map = RegionMap(payload.size)
        self._holes = find_holes(payload.descriptor, payload.size)
        self._scanner = BlockScanner()
        self._buffer = bytearray(REGION)
        self._level = FALSE_ALARMS / (2 * (sample.regions + 1))
        bounds = critical_values(self._level, _FREEDOM)
        self._bytes = _Statistic("byte values", bounds)
        self._steps = _Statistic("exclusive or of neighbouring bytes", bounds)
        self._zero, self._few, self._units, self._copies = _Places(), _Places(), _Places(), _Places()
        self._uneven = _Places()
        self._whole_pages = 0
        self._example = (0, 0)
        self._looked_at = 0

    def run(self, progress: Callable[[int], None]) -> Examination:
        done = 0
        for start, end in self._sample:
            pieces = self._holes.data_between(start, end)
            self._map.mark(start, end, Kind.RANDOM)
            if pieces:
                self._look_at(start, end, pieces)
            done += end - start
            progress(done)
        for start, end in zip(self._holes.starts, self._holes.ends, strict=True):
            self._map.mark(start, end, Kind.HOLE)
        total = self._scanner.total()
        enough = total.size >= LEAST_TESTED
        tests = (
            self._bytes.result(total.bytes_statistic if enough else None),
            self._steps.result(total.steps_statistic if enough else None),
        )
        findings = [*self._holes_findings(), *self._block_findings()]
        findings += self._frequency_findings(tests, alone=not findings)
        findings += self._notes(total)
        return Examination(self._payload.size, self._sample.size, tuple(findings), tests, self._level, self._map)

    def _look_at(self, start: int, end: int, pieces: list[tuple[int, int]]) -> None:
        """Read what is no hole, and note what is striking."""
        blocks: list[tuple[int, int, int]] = []
        filled = 0
        with memoryview(self._buffer) as buffer:
            for first, last in pieces:
                self._payload.read_into(buffer[filled : filled + last - first], first)
                blocks.append((filled // BLOCK, first, (last - first) // BLOCK))
                filled += last - first
            scan = self._scanner.scan(buffer[:filled])
        copied = self._note_copies(blocks)
        if scan.marks:
            self._note_marks(scan.marks, blocks)
        passes = [True]
        if scan.size >= LEAST_TESTED:
            passes = [self._bytes.take(scan.bytes_statistic, start), self._steps.take(scan.steps_statistic, start)]
        if not all(passes) and not scan.marks and not copied:
            self._uneven.add(start, end - start)
            self._map.mark(start, end, Kind.UNEVEN)

    def _note_copies(self, blocks: list[tuple[int, int, int]]) -> bool:
        copied = False
        for number, offset, count in blocks:
            copies = self._scanner.copies(offset // BLOCK, number, count)
            pages: dict[int, int] = {}
            for block, earlier in copies:
                if not copied and not self._copies.count:
                    self._example = (block * BLOCK, earlier * BLOCK)
                copied = True
                self._copies.add(block * BLOCK, BLOCK)
                self._map.mark(block * BLOCK, block * BLOCK + BLOCK, Kind.REPEATED)
                page = block * BLOCK // _PAGE
                pages[page] = pages.get(page, 0) + 1
            self._whole_pages += sum(blocks_of * BLOCK == _PAGE for blocks_of in pages.values())
        return copied

    def _note_marks(self, marks: bytes, blocks: list[tuple[int, int, int]]) -> None:
        for number, offset, count in blocks:
            at = offset
            for mark, run in groupby(marks[number : number + count]):
                size = len(list(run)) * BLOCK
                for wanted, places, kind in (
                    (ZERO, self._zero, Kind.ZERO),
                    (REPEATS, self._units, Kind.REPEATED),
                    (FEW_VALUES, self._few, Kind.UNEVEN),
                ):
                    if mark & wanted:
                        places.add(at, size)
                        self._map.mark(at, at + size, kind)
                at += size

    def _holes_findings(self) -> list[Finding]:
        holes = self._holes
        if not holes.count:
            return []
        places = list(zip(holes.starts, [e - s for s, e in zip(holes.starts, holes.ends, strict=True)], strict=True))
        where = f"at byte {places[0][0]}" if holes.count == 1 else f"in {holes.count} places, {_first(places)}"
        text = f"{holes.size} bytes ({percent(holes.size, self._payload.size)}) were never written, {where}"
        return [Finding("error", "holes", text, tuple(places[:_PLACES]))]

    def _block_findings(self) -> list[Finding]:
        read, found = self._sample.size, []
        if self._zero.count:
            text = f"{self._zero.words(read)} are blocks of {BLOCK} bytes that are all zeros"
            found.append(Finding("error", "zero blocks", text, tuple(self._zero.first)))
        if self._copies.count:
            at, earlier = self._example
            text = (
                f"{self._copies.size // BLOCK} blocks of {BLOCK} bytes ({self._whole_pages} whole ones of {_PAGE}) "
                f"were there before, the first at byte {at} and {earlier}"
            )
            found.append(Finding("error", "repeated blocks", text, tuple(self._copies.first)))
        if self._units.count:
            text = (
                f"{self._units.words(read)} are blocks with 16 bytes that were in the same region before, as a cipher "
                "in ECB mode has them, and anything that is not encrypted"
            )
            found.append(Finding("error", "repeated bytes", text, tuple(self._units.first)))
        if self._few.count:
            text = f"{self._few.words(read)} are blocks of {BLOCK} bytes with few different values, as in text"
            found.append(Finding("error", "low entropy", text, tuple(self._few.first)))
        return found

    def _frequency_findings(self, tests: tuple[FrequencyTest, ...], *, alone: bool) -> list[Finding]:
        found = []
        if self._uneven.count:
            text = (
                f"{self._uneven.words(self._sample.size)} have byte frequencies that random data do not have "
                f"(less than one in {_PAYLOADS_A_FALSE_ALARM} payloads of random bytes has any such region)"
            )
            found.append(Finding("error", "frequencies", text, tuple(self._uneven.first)))
        for test in tests:
            # where parts tell already, of course the whole does
            if test.total_p < self._level and alone and not any(other.failed for other in tests):
                text = (
                    f"{test.name}: no region by itself, but all together are not random "
                    f"(less than one in {_PAYLOADS_A_FALSE_ALARM} payloads of random bytes is like that)"
                )
                found.append(Finding("error", "frequencies", text))
        return found

    def _notes(self, total: RegionScan) -> list[Finding]:
        found = []
        if self._sample.size < self._payload.size:
            text = (
                f"{self._sample.size} of {self._payload.size} bytes ({percent(self._sample.size, self._payload.size)}) "
                "were looked at, evenly spread; --full looks at all"
            )
            found.append(Finding("note", "sample", text))
        if not self._holes.count and total.size < LEAST_TESTED:
            found.append(Finding("note", "size", f"{total.size} bytes are too few to tell anything by frequencies"))
        if self._scanner.thinned:
            text = f"repeats were looked for among one block in {2**self._scanner.thinned}, to save memory"
            found.append(Finding("note", "repeated blocks", text))
        return found
