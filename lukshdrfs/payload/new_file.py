"""A payload file that is made: ours by the descriptor that made it, from its first byte on, and gone if that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.payload.file import FilePayload
from lukshdrfs.payload.image_locks import lock_image


@contextmanager
def new_payload_file(name: str, size: int) -> Iterator[FilePayload]:
    """
    Make a sparse file of `size` bytes, mode 0600, and yield it, locked; if anything fails meanwhile, it goes again.

    What takes its name while it is written (others may act in the folder) is neither written to nor removed.
    Raises DeviceError if it cannot be made, InUse if at the end something else has its name.
    """
    path = Path(name)
    with ExitStack() as held:
        try:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            held.callback(os.close, folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(path.name, flags, 0o600, dir_fd=folder)
        except OSError as error:
            raise _failure(name, error) from None
        made = os.fstat(descriptor)
        try:
            with _sized(descriptor, name, size) as payload:
                yield payload
        except BaseException:
            with suppress(OSError):
                if _is(folder, path.name, made):
                    os.unlink(path.name, dir_fd=folder)
            raise
        if not _is(folder, path.name, made):
            raise InUse(f"payload {name} has been taken away or replaced meanwhile by somebody else")


def _is(folder: int, name: str, made: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), made)
    except FileNotFoundError:
        return False


def _sized(descriptor: int, name: str, size: int) -> FilePayload:
    """Return the payload, which closes the descriptor."""
    try:
        os.ftruncate(descriptor, size)
        lock_image(descriptor, name, writable=True)
        return FilePayload(descriptor, name, read_only=False)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise _failure(name, error) from None
        raise


def _failure(name: str, error: OSError) -> DeviceError:
    return DeviceError(f"payload {name}: {os.strerror(error.errno or 0)}")
