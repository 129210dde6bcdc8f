"""`lukshdrfs info`: what a header says, and what the payload is."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from typing import Any

from lukshdrfs.cli.arguments import Subparsers, add_backing_chain, add_header, payload_name, pin
from lukshdrfs.cli.terminal.description import describe, lines
from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.headers import parse_from, read_header
from lukshdrfs.luks.model import Header
from lukshdrfs.payload import (
    Access,
    EnginePayload,
    open_payload,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "info",
        help="show what a header says",
        description="Show everything that a header says: cipher, keyslots and their cost, digests, segments, tokens.",
    )
    parser.add_argument("payload", nargs="?", metavar="PAYLOAD", help="or the header itself")
    add_header(parser)
    parser.add_argument("--payload-format", default="raw", metavar="F", help="raw or qcow2 (raw)")
    add_backing_chain(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    sources = arguments.header or ([arguments.payload] if arguments.payload else [])
    if not sources:
        raise UsageError("name a header with --header, or a payload")
    if len(sources) > 1:
        raise UsageError("info shows one header; give --header once")
    if arguments.payload and not payload_name(arguments).is_plain:
        document = _indirect(arguments)
    else:
        document = _plain(arguments, sources[0])
    text = json.dumps(document, indent=2) if arguments.json else "\n".join(lines(document))
    sys.stdout.write(text + "\n")
    return 0


def _plain(arguments: argparse.Namespace, source: str) -> dict[str, Any]:
    """Describe the header, and a payload that is a file or device."""
    header = read_header(source, pin(arguments))
    payload_size = _payload_size(arguments.payload) if arguments.payload else None
    # a header file by itself is one whose data are elsewhere, or whose data offset is past its end
    alone = not arguments.header and not _holds_data(header, payload_size or 0)
    document = describe(header, detached=bool(arguments.header) or alone)
    if payload_size is not None and not alone:
        document["payload"] = {
            "format": "raw",
            "size": payload_size,
            "virtual_size": _virtual_size(header, payload_size),
        }
    return document


def _indirect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Describe the header, and a payload in a format or behind an address of its own."""
    with open_payload(payload_name(arguments), Access(read_only=True)) as payload:
        if arguments.header:
            header = read_header(arguments.header[0], pin(arguments))
        else:
            header = parse_from(payload, payload.name, pin(arguments))
        document = describe(header, detached=bool(arguments.header))
        document["payload"] = {
            "format": arguments.payload_format,
            "size": payload.image.size if isinstance(payload, EnginePayload) else payload.size,
            "capacity": payload.size,
            "virtual_size": _virtual_size(header, payload.size),
        }
        if isinstance(payload, EnginePayload):
            # what it takes on its own file system, which a thin payload has less of than it shows
            document["payload"]["allocated"] = payload.image.allocated
    return document


def _holds_data(header: Header, size: int) -> bool:
    first = header.segments[0]
    return first.offset >= len(header.area) and size > first.offset


def _payload_size(name: str) -> int:
    try:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise DeviceError(f"payload {name} is a directory")
            return os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DeviceError(f"payload {name}: {os.strerror(error.errno or 0)}") from None


def _virtual_size(header: Header, payload_size: int) -> int:
    """Return the bytes of plaintext, as far as the header can be taken at its word."""
    total = 0
    for segment in header.segments:
        there = max(0, payload_size - segment.offset)
        unit = max(1, segment.sector_size)
        total += there - there % unit if segment.size is None else segment.size
    return total
