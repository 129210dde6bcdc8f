"""Another size for a mounted volume, as its owner asks for it."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field, replace

from lukshdrfs.errors import UsageError

RESIZE_REQUEST = "system.lukshdrfs.resize"
"""
Set to a JSON object, it asks for what `Wish` says. Read, it says how far the last wish is, in a JSON object: `state`
(none, running, done, failed), `done` and `total` (bytes that are filled), `size` (of the volume), `error`, `exit_code`.
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the owner asks for."""

    size: int | None
    """Bytes; None for all that the payload has."""
    fill: bool
    """Whether what comes to the end is zeros, written; otherwise it is what the payload has there."""
    shrink: bool
    """Whether the volume may become shorter, its payload with it."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """By which it can be taken back, and no other."""
    cancel: bool = False
    """Whether it is taken back."""

    @classmethod
    def parse(cls, text: bytes) -> Wish:
        """Return what was asked for. Raises UsageError if it cannot be understood."""
        try:
            wish = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise UsageError("no request for another size") from None
        flags = (wish.fill, wish.shrink, wish.cancel)
        understood = type(wish.id) is str and all(type(flag) is bool for flag in flags)
        if not understood or not (wish.size is None or type(wish.size) is int):
            raise UsageError("no request for another size")
        return wish

    def encode(self) -> bytes:
        """Return what `parse` takes."""
        return json.dumps(asdict(self)).encode()

    def cancellation(self) -> bytes:
        """Return what takes it back."""
        return replace(self, cancel=True).encode()
