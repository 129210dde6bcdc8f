"""What to do where there is no header: it depends on what else the command line names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from lukshdrfs.errors import LukshdrfsError, NoHeader
from lukshdrfs.payload import FilePayload, is_network
from lukshdrfs.recognition.magics import LUKS_HEADERS, known_magics


@contextmanager
def naming_the_way(arguments: argparse.Namespace) -> Iterator[None]:
    """Complete the message of a NoHeader that is raised inside."""
    try:
        yield
    except NoHeader as error:
        raise NoHeader(f"{error}{_way_out(arguments, error)}", error.recognised) from None


def _way_out(arguments: argparse.Namespace, error: NoHeader) -> str:
    headers, payload = getattr(arguments, "header", None), getattr(arguments, "payload", None)
    if headers and payload and _begins_with_header(payload):
        return f"; {payload}, named as the payload, begins with one: are the two the wrong way round?"
    if not headers and hasattr(arguments, "header") and not error.recognised:
        return "; a detached header is named with --header"
    return ""


def _begins_with_header(name: str) -> bool:
    if is_network(name):
        return False
    try:
        with FilePayload.open(name, read_only=True, locked=False) as payload:
            return any(place == 0 for place, _ in known_magics(payload, LUKS_HEADERS))
    except LukshdrfsError:
        return False
