"""`lukshdrfs resize`: make a mounted volume longer, or shorter, while it is used."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import select
import time
from collections.abc import Iterator
from typing import Any

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.mounted import mount_at
from lukshdrfs.cli.quantities import size
from lukshdrfs.cli.terminal.progress import Progress
from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError, OutOfMemory, UsageError
from lukshdrfs.mounts import RESIZE_REQUEST, Apart, Wish, owner_to_ask

PATIENCE_S = 60.0
"""How long the daemon may take for one step of the filling, or to answer at all."""
CANCEL_PATIENCE_S = 10.0
_LOOK_AGAIN_S = 0.1
_ERRORS: dict[int, type[LukshdrfsError]] = {
    error.exit_code: error for error in (UsageError, OutOfMemory, DeviceError, InUse)
}
_REFUSED = {
    errno.EPERM: "it is another user's mount",
    errno.EACCES: "it is another user's mount",
    errno.EBUSY: "its size is being changed already",
    errno.EROFS: "it is mounted read-only",
    errno.EIO: "it is locked",
    errno.ENOTCONN: "it was unmounted, or its daemon is gone",
    errno.EOPNOTSUPP: "its daemon is of another version, which does not know how",
}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "resize",
        help="make a mounted volume longer, while it is used",
        description="Make a mounted volume SIZE bytes long, and its payload with it, if that is a file; without SIZE, "
        "as long as its payload is (which a logical volume, say, has become meanwhile). What comes to the end is "
        "zeros, encrypted and written before the new size is seen; others read and write meanwhile. Returns when it is "
        "done. Ctrl-C leaves all as it was.",
    )
    parser.intermixed = True
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("size", nargs="?", type=size, metavar="SIZE", help="bytes, or with K, M, G, T")
    parser.add_argument("--no-fill", action="store_true", help="take what the payload has there, unwritten")
    parser.add_argument("--shrink", action="store_true", help="allow a SIZE that cuts off the end of the volume")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    mount = mount_at(arguments.mountpoint)
    owner = owner_to_ask(mount)
    if owner is None:
        raise DeviceError(f"{arguments.mountpoint} is another user's mount; its owner can resize it")
    wish = Wish(arguments.size, fill=not arguments.no_fill, shrink=arguments.shrink)
    conversation = Apart(lambda: _converse(mount.mountpoint, wish), owner)
    try:
        _follow(conversation, arguments.mountpoint)
    except BaseException:
        # by another process: the first one is at its next look, or hangs
        cancelling = Apart(lambda: _cancel(mount.mountpoint, wish), owner)
        with contextlib.suppress(LukshdrfsError):
            _follow(cancelling, arguments.mountpoint, CANCEL_PATIENCE_S)
        cancelling.leave()
        raise
    finally:
        conversation.leave()
    return 0


def _follow(conversation: Apart, name: str, patience_s: float = PATIENCE_S) -> None:
    """Show how far it is until it is done. Raises the error that ended it; InUse if the daemon is silent for long."""
    progress: Progress | None = None
    seen, deadline = -1, time.monotonic() + patience_s
    with contextlib.ExitStack() as shown:
        while not conversation.ended:
            if not select.select([conversation], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise InUse(f"{name}: its daemon does not answer")
            conversation.receive()
            state = _last_state(conversation, name)
            done = state.get("done", 0)
            if done != seen or conversation.ended:
                seen, deadline = done, time.monotonic() + patience_s
            if state.get("total") and progress is None:
                progress = shown.enter_context(Progress(f"resizing {name}", state["total"]))
            if progress:
                progress.show(done)
    if conversation.error:
        raise _refusal(name, conversation.error)
    state = _last_state(conversation, name)
    if state.get("state") == "failed":
        raise _ERRORS.get(state["exit_code"], LukshdrfsError)(f"{name}: {state['error']}")


def _last_state(conversation: Apart, name: str) -> dict[str, Any]:
    """Return what was said last. Raises DeviceError if it is not what our daemon says: it may be another user's."""
    state = conversation.answers[-1] if conversation.answers else {"state": "running"}
    numbers = [state.get(key, 0) for key in ("done", "total", "exit_code")] if type(state) is dict else [None]
    if any(type(number) is not int for number in numbers) or (state.get("state") == "failed" and "error" not in state):
        raise DeviceError(f"{name} cannot be resized: what serves it is not lukshdrfs")
    return {"exit_code": LukshdrfsError.exit_code, **state}


def _refusal(name: str, error: OSError) -> LukshdrfsError:
    number = error.errno or 0
    kind = InUse if number == errno.EBUSY else DeviceError
    return kind(f"{name} cannot be resized: {_REFUSED.get(number, os.strerror(number))}")


def _converse(mountpoint: str, wish: Wish) -> Iterator[dict[str, Any]]:
    """Ask the mount for another size, and yield how far it is, until it is done."""
    os.setxattr(mountpoint, RESIZE_REQUEST, wish.encode(), follow_symlinks=False)
    yield from _states(mountpoint)


def _cancel(mountpoint: str, wish: Wish) -> Iterator[dict[str, Any]]:
    """Take a request back, and wait until all is as it was; do nothing if it was not taken, or is done."""
    os.setxattr(mountpoint, RESIZE_REQUEST, wish.cancellation(), follow_symlinks=False)
    yield from _states(mountpoint)


def _states(mountpoint: str) -> Iterator[dict[str, Any]]:
    while True:
        try:
            state = json.loads(os.getxattr(mountpoint, RESIZE_REQUEST, follow_symlinks=False))
        except OSError as error:  # what is there now does not know the attribute
            gone = error.errno in (errno.EOPNOTSUPP, errno.ENODATA, errno.ENOENT)
            raise OSError(errno.ENOTCONN if gone else error.errno, "") from None
        except ValueError:
            raise OSError(errno.EOPNOTSUPP, "") from None
        yield state
        if type(state) is not dict or state.get("state") != "running":
            return
        time.sleep(_LOOK_AGAIN_S)
