"""What the owner of a mount asks of the conversion that goes on beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from lukshdrfs.errors import UsageError

CONVERSION_REQUEST = "system.lukshdrfs.conversion"
"""
Set to a JSON object, it asks for what `Steering` says. Read, it says how far the conversion is, in a JSON object:
`mode` (encrypt, decrypt, reencrypt), `done` and `size` (bytes), `state` (running, paused, failed, done) and, if it has
failed, `error`; or only `state`, none.
"""
_ACTIONS = ("continue", "pause")


@dataclass(frozen=True, slots=True)
class Steering:
    """What is asked for."""

    action: str = ""
    """`continue`, `pause`, or nothing: as it is."""
    rate: int | None = None
    """Bytes a second at most; 0 for as fast as it can; None: as it is."""
    zone_size: int | None = None
    """Bytes that a step converts at most; None: as it is."""

    @classmethod
    def parse(cls, text: bytes) -> Steering:
        """Return what was asked for. Raises UsageError if it cannot be understood."""
        try:
            asked = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise UsageError("no request for a conversion") from None
        numbers = [number for number in (asked.rate, asked.zone_size) if number is not None]
        if asked.action not in ("", *_ACTIONS) or any(type(number) is not int or number < 0 for number in numbers):
            raise UsageError("no request for a conversion")
        return asked

    def encode(self) -> bytes:
        """Return what `parse` takes."""
        return json.dumps(asdict(self)).encode()
