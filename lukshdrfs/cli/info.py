"""`lukshdrfs info`: what a header says, and what the payload is."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from typing import Any

from lukshdrfs.cli.arguments import Subparsers, add_header, pin
from lukshdrfs.cli.logs import printable
from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.luks import Digest, Header, Kdf, Keyslot, Segment
from lukshdrfs.volume import read_header


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("info", help="show what a header says")
    parser.add_argument("payload", nargs="?", metavar="PAYLOAD", help="or the header itself")
    add_header(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    sources = arguments.header or ([arguments.payload] if arguments.payload else [])
    if not sources:
        raise UsageError("name a header with --header, or a payload")
    if len(sources) > 1:
        raise UsageError("info shows one header; give --header once")
    header = read_header(sources[0], pin(arguments))
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
    text = json.dumps(document, indent=2) if arguments.json else "\n".join(_lines(document))
    sys.stdout.write(text + "\n")
    return 0


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


def describe(header: Header, *, detached: bool) -> dict[str, Any]:
    """Return the header as a JSON document, without the payload."""
    first = header.segments[0]
    digest = header.digest_of_segment(first.id)
    bound = {slot.key_size for slot in header.keyslots if digest and slot.id in digest.keyslots}
    return {
        "type": header.type,
        "uuid": header.uuid,
        "label": header.label,
        "subsystem": header.subsystem,
        "cipher": first.encryption,
        "key_size": max(bound, default=0) * 8,
        "sector_size": first.sector_size,
        "detached": detached,
        "payload_offset": first.offset,
        "epoch": header.seqid,
        "metadata_size": header.metadata_size,
        "keyslots_size": header.keyslots_size,
        "flags": list(header.flags),
        "requirements": list(header.requirements),
        "keyslots": [_describe_keyslot(header, slot) for slot in header.keyslots],
        "digests": [_describe_digest(digest) for digest in header.digests],
        "segments": [_describe_segment(segment) for segment in header.segments],
        "tokens": [{"id": token.id, "type": token.type, "keyslots": list(token.keyslots)} for token in header.tokens],
        "warnings": list(header.warnings),
    }


def _describe_kdf(kdf: Kdf) -> dict[str, Any]:
    if kdf.type == "pbkdf2":
        return {"type": kdf.type, "hash": kdf.hash, "iterations": kdf.iterations}
    return {"type": kdf.type, "time": kdf.iterations, "memory_kib": kdf.memory_kib, "cpus": kdf.lanes}


def _describe_keyslot(header: Header, slot: Keyslot) -> dict[str, Any]:
    digest = header.digest_of_keyslot(slot.id)
    return {
        "id": slot.id,
        "type": slot.type,
        "key_size": slot.key_size * 8,
        "priority": {0: "ignore", 1: "normal", 2: "prefer"}.get(slot.priority, "unknown"),
        "bound": digest is not None and bool(digest.segments),
        "kdf": _describe_kdf(slot.kdf) if slot.kdf else None,
        "af": {"hash": slot.af.hash, "stripes": slot.af.stripes} if slot.af else None,
        "area": {
            "offset": slot.area.offset,
            "size": slot.area.size,
            "encryption": slot.area.encryption,
            "key_size": slot.area.key_size * 8,
        },
        "problem": slot.problem,
    }


def _describe_digest(digest: Digest) -> dict[str, Any]:
    return {
        "id": digest.id,
        "type": digest.type,
        "hash": digest.hash,
        "iterations": digest.iterations,
        "keyslots": sorted(digest.keyslots),
        "segments": sorted(digest.segments),
        "problem": digest.problem,
    }


def _describe_segment(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "type": segment.type,
        "offset": segment.offset,
        "size": "dynamic" if segment.size is None else segment.size,
        "iv_tweak": segment.iv_tweak,
        "encryption": segment.encryption,
        "sector_size": segment.sector_size,
        "flags": list(segment.flags),
        "integrity": segment.integrity,
    }


def _lines(document: dict[str, Any], indent: str = "") -> list[str]:
    """Return a JSON document as text for people: a line for each value, deeper ones further to the right."""
    lines = []
    for key, value in document.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            for item in value:
                lines += [f"{indent}  {item['id']}:", *_lines({**item, "id": None}, indent + "    ")]
        elif value not in (None, "", [], 0) or key in ("payload_offset", "detached"):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append(f"{indent}{key}: {printable(shown)}")
    return lines
