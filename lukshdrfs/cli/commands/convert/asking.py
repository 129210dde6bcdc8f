"""What a person at a terminal is told, and asked, before a conversion begins."""

from __future__ import annotations

import argparse
import sys
import time

from lukshdrfs.cipher import gcrypt_hash_blocks
from lukshdrfs.cli.one_header import header_name
from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.cli.terminal.progress import duration
from lukshdrfs.errors import UsageError
from lukshdrfs.payload import Payload

_SAMPLE = 16 << 20
"""Bytes that the measurement reads."""
_BLOCK = 4096
_READ_AND_WRITTEN = 2
"""Each byte is read once and written once."""


def ask(arguments: argparse.Namespace, payload: Payload, place: tuple[int, int], what: str, becomes: str) -> None:
    """
    Say what is about to happen, and ask whether it is to, where somebody can answer. Raises UsageError for a no.

    `place` is where on the payload the data are, and how many bytes; `what` is what they are.
    """
    if arguments.batch_mode or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    offset, size = place
    sys.stderr.write(
        f"{printable(payload.name)}: {size} bytes ({printable(what)}) are {becomes} in place. That takes "
        f"{duration(_least_time_s(payload, offset, size))} or longer, may be cut off at any moment, and goes on with "
        f"the same command.\nThe header is {printable(header_name(arguments))}. Without it the data are lost: keep a "
        "copy elsewhere, and a new one when all is done\n('lukshdrfs header backup').\nGo on? Type yes: "
    )
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise UsageError("nothing was done")


def _least_time_s(payload: Payload, offset: int, size: int) -> float:
    """Return how many seconds it takes at least, from how long it takes to read and hash what is at the start."""
    sample = memoryview(bytearray(min(size, _SAMPLE)))
    start = time.monotonic()
    payload.read_into(sample, offset)
    gcrypt_hash_blocks("SHA256", sample, _BLOCK)
    spent = time.monotonic() - start
    return spent * _READ_AND_WRITTEN * size / max(1, len(sample))
