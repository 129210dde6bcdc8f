"""`lukshdrfs status`: what is mounted, and who serves it."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.mounted import mount_at
from lukshdrfs.cli.terminal.description import lines
from lukshdrfs.mounts import (
    ANSWER_LIMIT_S,
    PROPERTY_PREFIX,
    Apart,
    Mount,
    holders_apart,
    image_of,
    our_mounts,
    wait_apart,
)

_NUMBERS = {"pid", "key_size", "sector_size", "payload_offset"}
_LONGEST_NUMBER = 20
_ALIVE = ("serving", "locked")
_UNSEEN = "perhaps others: a process that hangs could not be looked at"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "status",
        help="show what is mounted, and who serves it",
        description="Show mountpoint, payload, image, cipher, the daemon's process and who holds the mount, from the "
        "kernel's mount table and the image's extended attributes.",
    )
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help="only this one; exit status 4 if it is not")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    found = _describe(our_mounts() if arguments.mountpoint is None else [mount_at(arguments.mountpoint)])
    if arguments.json:
        sys.stdout.write(json.dumps(found if arguments.mountpoint is None else found[0], indent=2) + "\n")
    else:
        for document in found:
            sys.stdout.write("\n".join(lines(document)) + "\n\n")
    return 0


def _describe(mounts: list[Mount]) -> list[dict[str, Any]]:
    """Return what the mount table and, where we may ask them in time, the images say; all are asked at once."""
    asked = [Apart(partial(_ask, mount.mountpoint)) for mount in mounts]
    wait_apart(asked, ANSWER_LIMIT_S)
    documents = [_document(mount, answer) for mount, answer in zip(mounts, asked, strict=True)]
    serving = [document for document in documents if document["state"] in _ALIVE]
    known, complete = holders_apart([document["mountpoint"] for document in serving]) if serving else ({}, True)
    for document in serving:
        document["held_by"] = known[document["mountpoint"]]
        if not complete:
            document["held_by"].append(_UNSEEN)
    return documents


def _ask(mountpoint: str) -> Iterator[tuple[str, str | int]]:
    image = image_of(mountpoint)
    yield "image", image
    yield "size", os.stat(image).st_size  # noqa: PTH116
    for name in os.listxattr(image):
        if name.startswith(PROPERTY_PREFIX):
            yield name.removeprefix(PROPERTY_PREFIX), os.getxattr(image, name).decode("utf-8", "replace")


def _document(mount: Mount, asked: Apart) -> dict[str, Any]:
    document: dict[str, Any] = {"mountpoint": mount.mountpoint, "payload": mount.source, "state": "serving"}
    for key, value in asked.answers:
        number = key in _NUMBERS and str(value).isdecimal() and len(value) <= _LONGEST_NUMBER
        if key == "conversion":
            document[key] = _conversion(str(value))
        elif key not in document or key == "state":  # what the kernel says is nothing for the mount to say
            document[key] = int(value) if number else value
    if not asked.ended:
        document["state"] = f"its daemon has not answered within {ANSWER_LIMIT_S:.0f} s"
    elif asked.error is not None:
        document["state"] = _state_of(asked.error)
    elif not asked.answers:
        document["state"] = "it does not show what a mount of lukshdrfs shows"
    return document


def _conversion(text: str) -> object:
    """Return how far a conversion in place is, as the mount says it: an object if it is one of ours."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _state_of(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "another user's"
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return "its daemon is gone; 'lukshdrfs unmount' cleans up"
    return f"it cannot be looked at: {error.strerror}"
