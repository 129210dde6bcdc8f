"""`lukshdrfs status`: what is mounted, and who serves it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.description import lines
from lukshdrfs.cli.unmount import image_of, mount_at
from lukshdrfs.fuse import FILE_SYSTEM_TYPE, Mount, holders, mount_table

_PREFIX = "user.lukshdrfs."
_NUMBERS = {"pid", "key_size", "sector_size", "payload_offset"}


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
    if arguments.mountpoint is None:
        found = [_describe(mount) for mount in mount_table() if mount.type == FILE_SYSTEM_TYPE]
    else:
        found = [_describe(mount_at(arguments.mountpoint))]
    if arguments.json:
        sys.stdout.write(json.dumps(found if arguments.mountpoint is None else found[0], indent=2) + "\n")
    else:
        for document in found:
            sys.stdout.write("\n".join(lines(document)) + "\n\n")
    return 0


def _describe(mount: Mount) -> dict[str, Any]:
    """Return what the mount table and, where we may ask it, the image say."""
    document: dict[str, Any] = {"mountpoint": mount.mountpoint, "payload": mount.source, "state": "serving"}
    try:
        image = image_of(mount.mountpoint)
        document["image"] = image
        document["size"] = os.stat(image).st_size  # noqa: PTH116
        for name in os.listxattr(image):
            value = os.getxattr(image, name).decode("utf-8", "replace")
            key = name.removeprefix(_PREFIX)
            document[key] = int(value) if key in _NUMBERS else value
    except PermissionError:
        document["state"] = "another user's"
    except (OSError, ValueError):
        document["state"] = "its daemon is gone; 'lukshdrfs unmount' cleans up"
    else:
        document["held_by"] = _holders(mount.mountpoint)
    return document


def _holders(mountpoint: str) -> list[str]:
    return [holder.what for holder in holders(mountpoint)]
