"""Holding the place where something is about to be written, from the first look at it to the end of the writing."""

from __future__ import annotations

import errno
import os
import stat

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.payload.image_locks import lock_image
from lukshdrfs.payload.in_use import check_unused
from lukshdrfs.payload.writable import check_writable_device, not_writable


def hold_alone(name: str, what: str, access: int = os.O_RDWR) -> int:
    """
    Return a descriptor of an existing file or block device that nobody uses, and that nobody else can take to itself.

    A device is opened with O_EXCL: until it is closed, the kernel neither mounts nor maps it. A file has QEMU's image
    locks, and no loop device on it may be in use. `what` the place is for goes into messages, `access` is O_RDWR or
    O_RDONLY. Raises DeviceError, and InUse if somebody uses it.
    """
    exclusive = os.O_EXCL if _is_block_device(name) else 0
    try:
        descriptor = os.open(name, access | exclusive | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not wait
    except OSError as error:
        raise _failure(name, what, error) from None
    try:
        _check_alone(descriptor, name, what, exclusive=bool(exclusive))
        if access == os.O_RDWR:
            check_writable_device(descriptor, name, f"{what} {name}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_alone(descriptor: int, name: str, what: str, *, exclusive: bool) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        lock_image(descriptor, name, writable=True)
        check_unused(descriptor, f"{what} {name}")
    elif not stat.S_ISBLK(mode):
        raise DeviceError(f"{what} {name} is neither a file nor a block device")
    elif not exclusive:  # when its kind was looked at, the name meant something else
        raise InUse(f"{what} {name} is being replaced by another program")


def _is_block_device(name: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(name).st_mode)  # noqa: PTH116 - a name as it came from the command line
    except OSError:
        return False  # opening it says what is wrong


def _failure(name: str, what: str, error: OSError) -> DeviceError | InUse:
    if error.errno == errno.EBUSY:
        return InUse(f"{what} {name} is in use: it is mounted, or another program has it to itself")
    return not_writable(name, f"{what} {name}", error)
