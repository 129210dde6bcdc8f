"""Which mount a person means, without waiting for one that does not answer."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lukshdrfs.errors import DeviceError
from lukshdrfs.mounts import ANSWER_LIMIT_S, FILE_SYSTEM_TYPE, Mount, ask_apart, mount_table, our_mounts


def mount_at(name: str) -> Mount:
    """
    Return the mount at a path, at what the path links to, or of a payload.

    Raises DeviceError if it is none of ours, if a file system on the way does not answer, or if the payload is mounted
    at several places.
    """
    path = os.path.abspath(name)  # noqa: PTH100 - pathlib would not take '..' out
    found = _topmost(path)
    real = path
    if found is None:
        # the name may lie below a mount that does not answer, or lead into one
        resolved = ask_apart(lambda: _resolve(path), ANSWER_LIMIT_S)
        if not resolved.ended:
            raise DeviceError(f"{name}: a file system on the way there does not answer")
        real = next(iter(resolved.answers), path)
        found = _topmost(real)
    if found is not None and found.type == FILE_SYSTEM_TYPE:
        return found
    mounts = [mount for mount in our_mounts() if mount.source in (name, path, real)]
    if len(mounts) > 1:
        places = ", ".join(mount.mountpoint for mount in mounts)
        raise DeviceError(f"{name} is mounted at several places ({places}); name one of them")
    if not mounts:
        raise DeviceError(f"{name} is not a mountpoint of lukshdrfs")
    return mounts[0]


def is_mountpoint(name: str) -> bool:
    """Whether one of our volumes is mounted at a path; the mount itself is not asked."""
    mount = _topmost(os.path.abspath(name))  # noqa: PTH100 - as above
    return mount is not None and mount.type == FILE_SYSTEM_TYPE


def _topmost(path: str) -> Mount | None:
    return next((mount for mount in reversed(mount_table()) if mount.mountpoint == path), None)


def _resolve(path: str) -> Iterator[str]:
    yield os.path.realpath(path)
