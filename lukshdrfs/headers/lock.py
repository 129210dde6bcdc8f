"""
cryptsetup's lock on a header: many may read it, one may edit it.

A header file is locked itself. For a block device there is a file in /run/cryptsetup, which only root can reach.
Source: cryptsetup, docs/LUKS2-locking.txt and lib/utils_device_locking.c.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lukshdrfs.errors import InUse

log = logging.getLogger(__name__)

LOCK_FOLDER = Path("/run/cryptsetup")
LOCK_PATIENCE_S = 10.0
"""Seconds to wait for a program that is editing the header."""


@contextmanager
def header_lock(descriptor: int, name: str, *, exclusive: bool) -> Iterator[None]:
    """
    Hold the lock on an open header. Raises InUse if another program does not let go of it.

    A file system that has no locks, and a device whose lock we may not take, are read and edited without.
    """
    status, operation = os.fstat(descriptor), fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    lock_file = _locked_device_file(status.st_rdev, name, operation) if stat.S_ISBLK(status.st_mode) else None
    if lock_file is None:
        _wait_for(descriptor, name, operation)
    try:
        yield
    finally:
        if lock_file is None:
            _unlock(descriptor)
        else:
            _remove(lock_file, status.st_rdev)
            os.close(lock_file)


def _locked_device_file(device: int, name: str, operation: int) -> int | None:
    """
    Return a descriptor of a device's lock file, locked; None where it cannot be had.

    The one that we have waited for may have been removed by its owner: then it keeps nobody out who comes after us.
    """
    while (lock_file := _device_lock_file(device)) is not None:
        try:
            _wait_for(lock_file, name, operation)
            if _is_lock_file(lock_file, device):
                return lock_file
        except BaseException:
            os.close(lock_file)
            raise
        os.close(lock_file)
    return None


def _is_lock_file(descriptor: int, device: int) -> bool:
    try:
        with _lock_folder() as folder:
            named = os.stat(_device_lock_name(device), dir_fd=folder, follow_symlinks=False)
        return os.path.samestat(os.fstat(descriptor), named)
    except OSError:
        return False


def _wait_for(descriptor: int, name: str, operation: int) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                log.debug("header %s cannot be locked: %s", name, error)
                return
            if time.monotonic() > deadline:
                raise InUse(f"header {name} is being edited or read by another program") from None
            time.sleep(0.05)
        else:
            return


def _unlock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        log.debug("unlocking: %s", error)


def _device_lock_name(device: int) -> str:
    return f"L_{os.major(device)}:{os.minor(device)}"


@contextmanager
def _lock_folder() -> Iterator[int]:
    """Yield a descriptor of cryptsetup's folder. Raises OSError, also if others than its owner could act in it."""
    with suppress(FileExistsError):
        LOCK_FOLDER.mkdir(mode=0o700)
    folder = os.open(LOCK_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(errno.EPERM, f"{LOCK_FOLDER} is open to others")
        yield folder
    finally:
        os.close(folder)


def _device_lock_file(device: int) -> int | None:
    """Return a descriptor of a device's lock file, None where it cannot be had."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC
    try:
        with _lock_folder() as folder:
            return os.open(_device_lock_name(device), flags, 0o600, dir_fd=folder)
    except OSError as error:
        log.debug("the device's lock file cannot be had: %s", error)
        return None


def _remove(lock_file: int, device: int) -> None:
    """Remove a device's lock file if nobody else has it locked, as cryptsetup does."""
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_lock_file(lock_file, device):
            with _lock_folder() as folder:
                os.unlink(_device_lock_name(device), dir_fd=folder)
    except OSError as error:
        log.debug("the device's lock file stays: %s", error)


class ReencryptionLock:
    """
    Held by whoever converts a volume, or has a half-converted one mounted: cryptsetup's lock, by its rules.

    Where its folder cannot be entered, as without root, there is none; then the payload's own locks and the header's
    sequence number have to keep others out. Source: cryptsetup, lib/utils_device_locking.c (`acquire_and_verify`).
    """

    def __init__(self, uuid: str) -> None:
        """Take it. Raises InUse if another program has it."""
        self._name = f"LN_LUKS2-reencryption-{uuid}"
        self._descriptor: int | None = None
        while self._descriptor is None:
            try:
                with _lock_folder() as folder:
                    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC
                    descriptor = os.open(self._name, flags, 0o600, dir_fd=folder)
            except OSError as error:
                log.debug("the reencryption's lock cannot be had: %s", error)
                return
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_named(descriptor):
                    self._descriptor = descriptor
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EINTR):
                    raise InUse(
                        f"the volume {uuid} is being converted, or is mounted half-converted, by another program"
                    ) from None
                log.debug("the reencryption's lock cannot be had: %s", error)
                return
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def _is_named(self, descriptor: int) -> bool:
        """Whether the lock file is still the one of its name: its last owner removes it."""
        try:
            with _lock_folder() as folder:
                named = os.stat(self._name, dir_fd=folder, follow_symlinks=False)
            return os.path.samestat(os.fstat(descriptor), named)
        except OSError:
            return False

    def release(self) -> None:
        """Let go of it. May be called again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with suppress(OSError):
            if self._is_named(descriptor):  # it is held alone, so nobody else removes it meanwhile
                with _lock_folder() as folder:
                    os.unlink(self._name, dir_fd=folder)
        os.close(descriptor)
