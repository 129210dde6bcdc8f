"""`lukshdrfs check`: whether a payload gives itself away as something other than random bytes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.cli.terminal.picture import bytes_of_a_character, characters, check_place, png, write_picture
from lukshdrfs.cli.terminal.progress import Progress
from lukshdrfs.errors import DeviceError
from lukshdrfs.examination.examine import FALSE_ALARMS, examine
from lukshdrfs.examination.region_map import Kind
from lukshdrfs.examination.report import Examination
from lukshdrfs.examination.sampling import Sample
from lukshdrfs.examination.surroundings import neighbour_findings, size_findings
from lukshdrfs.findings import Finding
from lukshdrfs.payload import FilePayload
from lukshdrfs.payload.holes import BLOCK
from lukshdrfs.recognition import recognise
from lukshdrfs.recognition.magics import LUKS_HEADERS

RANDOM, TELLING = "random", "gives itself away"
"""The verdicts."""
_TELLING_STATUS = 1

_MIB = 1 << 20
_MOST, _FEWEST = 2 / 3, 10**9
HEADER_SIZES = {16 * _MIB: "a LUKS2 header", 4 * _MIB: "a LUKS2 header of cryptsetup 2.0", 2 * _MIB: "a LUKS1 header"}
"""As cryptsetup makes them by itself."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "check",
        help="tell whether a payload gives itself away",
        description="Tell whether a payload can be told from random bytes: signatures, parts that were never written, "
        "zeros, repeated blocks, byte frequencies. Exit status 0 if it cannot, 1 if it gives itself away, 4 if it "
        "cannot be read. It is only read, and may be in use.",
    )
    parser.add_argument("payload", metavar="PAYLOAD", help="file or block device with the ciphertext")
    parser.add_argument("--full", action="store_true", help="read all of it, not a sample of 258 MiB")
    parser.add_argument("--map", metavar="FILE", help="draw what is where, as a PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    name = arguments.payload
    picture = Path(arguments.map) if arguments.map is not None else None
    if picture is not None:
        check_place(picture)
    with FilePayload.open(name, read_only=True, locked=False) as payload:
        signatures = _signatures(payload)
        if payload.size < BLOCK and not signatures:
            what = f"has {payload.size} bytes, too few to tell anything from" if payload.size else "is empty"
            raise DeviceError(f"payload {name} {what}; a volume has {BLOCK} at least")
        total = Sample(payload.size, whole=arguments.full).size
        with Progress(f"reading {name}", total) as progress:
            seen = examine(payload, whole=arguments.full, progress=progress.show)
    for finding in signatures:
        for offset, size in finding.places:
            seen.map.mark(offset, offset + size, Kind.SIGNATURE)
    around = [*size_findings(seen.size, HEADER_SIZES), *neighbour_findings(name, LUKS_HEADERS)]
    seen = dataclasses.replace(seen, findings=(*signatures, *seen.findings, *around))
    if picture is not None:
        write_picture(picture, png(seen.map, legend=True))
    if arguments.json:
        sys.stdout.write(json.dumps(_document(name, seen), indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(seen, with_map=picture is None and sys.stdout.isatty())) + "\n")
    return _TELLING_STATUS if seen.gives_itself_away else 0


def _signatures(payload: FilePayload) -> list[Finding]:
    """Return what is recognised, and where."""
    found: dict[str, list[tuple[int, int]]] = {}
    for one in recognise(payload):
        if one.by_libblkid:
            text = f"blkid recognises {one.name}"
        else:
            text = f"at byte {one.offset} it begins like {one.name}" if one.offset else f"it begins like {one.name}"
        found.setdefault(text, []).append((one.offset, max(1, one.size)))
    return [Finding("error", "signature", text, tuple(places)) for text, places in found.items()]


def _verdict(seen: Examination) -> str:
    return TELLING if seen.gives_itself_away else RANDOM


def _document(name: str, seen: Examination) -> dict[str, Any]:
    return {
        "payload": name,
        "verdict": _verdict(seen),
        "size": seen.size,
        "read": seen.read,
        "findings": [
            {
                "severity": finding.severity,
                "subject": finding.subject,
                "text": finding.text,
                "offset": finding.places[0][0] if finding.places else None,
                "places": [{"offset": offset, "size": size} for offset, size in finding.places],
            }
            for finding in seen.findings
        ],
        "test": {
            "name": "chi-square of byte frequencies by region of 64 KiB, two-sided, Bonferroni",
            "false_alarms": FALSE_ALARMS,
            "level": seen.level,
            "statistics": [dataclasses.asdict(test) for test in seen.tests],
        },
    }


def _lines(seen: Examination, *, with_map: bool) -> list[str]:
    found = [f"{finding.severity:<7}  {finding.subject}: {printable(finding.text)}" for finding in seen.findings]
    found.append(f"tested   {_in_words(seen)}")
    if with_map and seen.size and _can_show("\u2591\u25c6"):
        found += characters(seen.map)
        found.append(f"each character is {bytes_of_a_character(seen.map) // 1024} KiB of the payload, row by row")
    return [*found, _verdict(seen)]


def _in_words(seen: Examination) -> str:
    """Say what the smallest p-value means: how many payloads of random bytes have one as small."""
    least = min(min(test.least_p, test.total_p) for test in seen.tests)
    share = least * FALSE_ALARMS / seen.level  # the level is for one of all the tests, see examination.py
    if share >= 1:
        found = "every payload of random bytes"
    elif share > _MOST:
        found = "most payloads of random bytes"
    elif share * _FEWEST > 1:
        found = f"one in {1 / share:.0f} payloads of random bytes"
    else:
        found = "next to no payload of random bytes"
    return (
        f"how often each byte value occurs: something as unusual is in {found} of this size; "
        f"what is in less than one of {1 / FALSE_ALARMS:.0f} counts as telling"
    )


def _can_show(text: str) -> bool:
    """Whether standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True
