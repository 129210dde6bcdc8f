"""The conversion of what is mounted: going on, a pause, another rate."""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Iterator

from lukshdrfs.cli.mounted import mount_at
from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.mounts import (
    ANSWER_LIMIT_S,
    CONVERSION_REQUEST,
    Steering,
    ask_apart,
    owner_to_ask,
)

_REFUSED = {
    errno.EPERM: "it is another user's mount",
    errno.EACCES: "it is another user's mount",
    errno.ENOTCONN: "it was unmounted, or its daemon is gone",
    errno.EOPNOTSUPP: "its conversion moves the data to another place, which is not done while the volume is used; "
    "unmount it and run the command with its payload and header",
    errno.ENODATA: "its volume is not half-converted; unmount it, have the command begin with --init-only, and mount "
    "it with --convert",
}


def steer(arguments: argparse.Namespace, mode: str) -> int:
    """Ask the daemon of a mount for what the command line says of its conversion."""
    name = arguments.payload
    if arguments.pause and arguments.go_on:
        raise UsageError("give one of --pause and --continue")
    if arguments.header or arguments.init_only or arguments.resume_only or arguments.resilience:
        raise UsageError(f"{name} is mounted: only --pause, --continue, --rate and --hotzone-size are for that")
    mount = mount_at(name)
    owner = owner_to_ask(mount)
    if owner is None:
        raise DeviceError(f"{name} is another user's mount; its owner can have its volume converted")
    named_only = arguments.rate is None and arguments.hotzone_size is None
    action = "pause" if arguments.pause else "continue" if arguments.go_on or named_only else ""
    wish = Steering(action, arguments.rate, arguments.hotzone_size)

    def converse() -> Iterator[str]:
        told = json.loads(os.getxattr(mount.mountpoint, CONVERSION_REQUEST, follow_symlinks=False))
        yield told.get("mode", mode)
        if told.get("mode", mode) == mode:
            os.setxattr(mount.mountpoint, CONVERSION_REQUEST, wish.encode(), follow_symlinks=False)

    answer = ask_apart(converse, ANSWER_LIMIT_S, owner)
    if answer.error:
        number = answer.error.errno or 0
        raise DeviceError(f"{name}: {_REFUSED.get(number, os.strerror(number))}")
    if not answer.ended:
        raise DeviceError(f"{name}: its daemon does not answer")
    if answer.answers != [mode]:
        raise UsageError(f"{name}: its conversion is another one; see 'lukshdrfs status {name}'")
    return 0
