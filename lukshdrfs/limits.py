"""
The limits that whoever starts us has set for the size of files and for the time of the processor.

A daemon inherits them for its whole life. Past the one, writes fail at a place that nobody thinks of; past the other,
the kernel ends the daemon. Source: getrlimit(2), RLIMIT_FSIZE and RLIMIT_CPU.
"""

from __future__ import annotations

import contextlib
import resource
import signal

from lukshdrfs.errors import DeviceError

_WAY_OUT = "(ulimit -f, LimitFSIZE=)"


def raise_limits() -> None:
    """Raise the limits to what this process may have; a write past them then fails instead of ending it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
        hard = resource.getrlimit(limit)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (hard, hard))


def largest_file() -> int | None:
    """Return the bytes that a file which this process writes can have; None for any number."""
    return _soft(resource.RLIMIT_FSIZE)


def check_file_size(what: str, size: int) -> None:
    """Raise DeviceError if a file (`what` names it) is larger, or is to be, than this process may write."""
    largest = largest_file()
    if largest is not None and size > largest:
        raise DeviceError(
            f"{what} has {size} bytes, and this process may write files of at most {largest}; raise its limit "
            f"{_WAY_OUT}"
        )


def limits_of_service(growing_to: int | None) -> list[str]:
    """
    Return what is to be known of a daemon that starts now: which limits will end its service, a line each.

    `growing_to` are the bytes that an image file may come to have, None for what does not grow.
    """
    found = []
    largest, processor = largest_file(), _soft(resource.RLIMIT_CPU)
    if largest is not None and growing_to is not None and growing_to > largest:
        found.append(
            f"the image file may come to have {growing_to} bytes, and writes past {largest} will fail; raise the limit "
            f"{_WAY_OUT}"
        )
    if processor is not None:
        found.append(f"the kernel ends the daemon after {processor} s of processor time (ulimit -t, LimitCPU=)")
    return found


def _soft(limit: int) -> int | None:
    soft = resource.getrlimit(limit)[0]
    return None if soft == resource.RLIM_INFINITY else soft
