"""What checks have found: one form for headers and payloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found."""

    severity: Severity
    """`error`: the payload gives itself away; `warning`: its surroundings do; `note`: worth knowing."""
    subject: str
    """`signature`, `holes`, `zero blocks`, …"""
    text: str
    places: tuple[tuple[int, int], ...] = ()
    """Where: offset and size in bytes, of the first 16."""
