"""Writing to a descriptor to the last byte, and to its storage."""

from __future__ import annotations

import errno
import os

from lukshdrfs.errors import PayloadError


def write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int, what: str) -> None:
    """Write all of `data` at byte `offset`. Raises PayloadError with the storage's errno."""
    view, done = memoryview(data), 0
    while done < len(view):
        try:
            done += os.pwrite(descriptor, view[done:], offset + done)
        except OSError as error:
            raise storage_failure(what, error) from None


def sync_descriptor(descriptor: int, what: str) -> None:
    """Return when everything written is on the storage. Raises PayloadError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise storage_failure(what, error) from None


def storage_failure(what: str, error: OSError) -> PayloadError:
    """Return the error of a storage that does not do what it was asked to."""
    return PayloadError(f"{what}: {os.strerror(error.errno or errno.EIO)}", error.errno or errno.EIO)
