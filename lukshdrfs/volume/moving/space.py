"""Space on the payload's file system for what is converted: where a file has holes, writing to them takes some."""

from __future__ import annotations

import os
import stat

from lukshdrfs.errors import DeviceError, PayloadError
from lukshdrfs.payload import Payload
from lukshdrfs.payload.holes import free_space

_BLOCK = 512
"""What st_blocks counts (stat(2))."""


def _is_sparse(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_blocks * _BLOCK < status.st_size


def allocate(payload: Payload, offset: int, size: int) -> None:
    """Give a range of a file with holes its space, and change no byte. Raises PayloadError, with the errno."""
    if payload.descriptor is None or not _is_sparse(payload.descriptor):
        return
    try:
        os.posix_fallocate(payload.descriptor, offset, size)
    except OSError as error:
        text = f"payload {payload.name}: no space for what is converted: {os.strerror(error.errno or 0)}"
        raise PayloadError(text, error.errno or 0) from None


def check_space(payload: Payload) -> None:
    """Raise DeviceError if a file has more holes than its file system has space."""
    if payload.descriptor is None or not _is_sparse(payload.descriptor):
        return
    status, there = os.fstat(payload.descriptor), free_space(payload.descriptor)
    missing = status.st_size - status.st_blocks * _BLOCK
    if there is not None and missing > there:
        raise DeviceError(
            f"payload {payload.name}: {missing} bytes of it are holes, which converting them fills, and its file "
            f"system has {there} bytes free; make room, or give --force"
        )
