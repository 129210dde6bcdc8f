"""What the processes that we start are given: their environment, and which descriptors stay open."""

from __future__ import annotations

import os
from itertools import pairwise

_PAST_ALL_DESCRIPTORS = 1 << 20

_KEPT = ("PATH", "HOME", "TERM", "TZ", "TMPDIR", "XDG_RUNTIME_DIR")


def for_children() -> dict[str, str]:
    """
    Return what programs need to find their files, and nothing that makes them do other things.

    LD_PRELOAD, BLKID_FILE and their like were meant for whoever was started with them. Messages are in English, for we
    read them.
    """
    return {"LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in _KEPT if name in os.environ}}


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor of this process but these."""
    ordered = sorted(keep)
    for before, after in pairwise([*ordered, _PAST_ALL_DESCRIPTORS]):
        os.closerange(before + 1, after)
