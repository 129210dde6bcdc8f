"""How much may be wrong with a header that is read all the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may be wrong with a header that is read all the same. By default nothing."""

    unused_areas_missing: bool = False
    """A LUKS1 file may end behind the last keyslot in use: what is missing holds no key."""
    foreign_signature: bool = False
    """Something else's signature may stand in a damaged header: the user has said that it is stale."""
    checksums_wrong: bool = False
    """It may be damaged: what makes sense of it is read, to save what can be saved. No key is trusted without its
    digest."""


STRICT = Tolerance()
"""Nothing may be wrong."""

FOR_UNLOCKING = Tolerance(unused_areas_missing=True)
"""What does no harm to whoever only unlocks a volume."""
