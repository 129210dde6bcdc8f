"""The environment of the programs that we start."""

from __future__ import annotations

import os

_KEPT = ("PATH", "HOME", "TERM", "TZ", "TMPDIR", "XDG_RUNTIME_DIR")


def for_children() -> dict[str, str]:
    """
    Return what programs need to find their files, and nothing that makes them do other things.

    LD_PRELOAD, BLKID_FILE and their like were meant for whoever was started with them. Messages are in English, for we
    read them.
    """
    return {"LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in _KEPT if name in os.environ}}
