"""Changes LUKS2 headers as an attacker or a later version could: the checksums are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

BINARY_SIZE = 4096
CHECKSUM = slice(448, 512)

Json = dict[str, Any]


def metadata(header: bytes) -> Json:
    """Return the JSON of the first copy."""
    size = int.from_bytes(header[8:16], "big")
    found = json.loads(header[BINARY_SIZE:size].rstrip(b"\0"))
    assert isinstance(found, dict)
    return found


def with_json_area(header: bytes, area: bytes) -> bytes:
    """Return the header with other bytes where its JSON is, in both copies."""
    size = int.from_bytes(header[8:16], "big")
    assert len(area) <= size - BINARY_SIZE
    edited = bytearray(header)
    for start in (0, size):
        copy = bytearray(edited[start : start + size])
        copy[BINARY_SIZE:] = area.ljust(size - BINARY_SIZE, b"\0")
        copy[CHECKSUM] = bytes(64)
        copy[CHECKSUM] = hashlib.sha256(copy).digest().ljust(64, b"\0")
        edited[start : start + size] = copy
    return bytes(edited)


def with_metadata(header: bytes, changed: Json) -> bytes:
    """Return the header with other metadata, in both copies."""
    return with_json_area(header, json.dumps(changed, separators=(",", ":")).encode())


def edit(path: Path, change: Callable[[Json], object]) -> None:
    """Change the metadata of a header file in place."""
    header = path.read_bytes()
    changed = metadata(header)
    change(changed)
    path.write_bytes(with_metadata(header, changed))
