"""A checked command line of `mount`."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import get_args

from lukshdrfs.cli.arguments import (
    payload_name,
    secret_source,
)
from lukshdrfs.cli.secrets.source import SecretSource
from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.fuse import (
    ConversionOptions,
    DataPath,
    LockPolicy,
    MountOptions,
    check_fuse,
    check_mountpoint,
    check_not_mounted,
)
from lukshdrfs.headers import source_descriptor
from lukshdrfs.payload import (
    is_network,
)

CACHE_MODES = ("writeback", "writethrough", "none")


TRUNCATION = ("refuse", "ignore")


DATA_PATHS = get_args(DataPath)


MAX_WORKERS = 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A checked command line."""

    arguments: argparse.Namespace
    secrets: SecretSource
    options: MountOptions


def _check_values(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a value that no mount can have."""
    payload_name(arguments).check(preserve_times=arguments.preserve_times)
    if arguments.cache not in CACHE_MODES:
        raise UsageError(f"--cache {arguments.cache}: expected {', '.join(CACHE_MODES)}")
    if arguments.data_path not in DATA_PATHS:
        raise UsageError(f"--data-path {arguments.data_path}: expected {', '.join(DATA_PATHS)}")
    if arguments.truncate not in TRUNCATION:
        raise UsageError(f"--truncate {arguments.truncate}: expected {', '.join(TRUNCATION)}")
    if not 1 <= arguments.workers <= MAX_WORKERS:
        raise UsageError(f"--workers {arguments.workers}: expected 1 to {MAX_WORKERS}")
    if arguments.force_header and not arguments.read_only:
        raise UsageError("--force-header takes a header that may say wrong things; it is for --read-only")
    if arguments.convert and arguments.read_only:
        raise UsageError("--convert writes to the payload and to the header; leave --read-only out")
    if arguments.lock_on_header_removal:
        _check_removable(arguments)
    if "/" in arguments.name or arguments.name in ("", ".", ".."):
        raise UsageError(f"--name {arguments.name!r} is not a file name")


def _umask(arguments: argparse.Namespace) -> int:
    """
    Return which bits the modes lack: those of all others, if nobody says otherwise.

    Who admits others to what nobody can write to means that they read it, unless it is said whose it is.
    """
    if arguments.umask is not None:
        return int(arguments.umask)
    shared = arguments.read_only and "allow_other" in arguments.kernel_options
    return 0 if shared and arguments.uid is None and arguments.gid is None else 0o077


def _absolute(name: str) -> str:
    return name if is_network(name) else os.path.realpath(name)


def _check_removable(arguments: argparse.Namespace) -> None:
    """Raise UsageError unless the header is something that can go away."""
    if not arguments.header:
        raise UsageError("--lock-on-header-removal is for a detached header; name it with --header")
    if any(source_descriptor(name) is not None or is_network(name) for name in arguments.header):
        raise UsageError("--lock-on-header-removal needs the header's path, not a descriptor or an address")


def checked_request(arguments: argparse.Namespace) -> Request:
    """Check all that can be checked before anything is opened."""
    _check_values(arguments)
    check_not_mounted(arguments.mountpoint)  # what follows looks at it
    options = MountOptions(
        # the daemon leaves the working directory; the last part of a mountpoint is not followed, see find_mount
        mountpoint=os.path.realpath(arguments.mountpoint),
        source=arguments.fsname or _absolute(arguments.payload),
        name=arguments.name,
        direct_io=arguments.cache == "none",
        workers=arguments.workers,
        data_path=arguments.data_path,
        growable=arguments.growable,
        ignore_truncation=arguments.truncate == "ignore",
        uid=os.getuid() if arguments.uid is None else arguments.uid,
        gid=os.getgid() if arguments.gid is None else arguments.gid,
        umask=_umask(arguments),
        conversion=ConversionOptions(arguments.convert, arguments.rate, arguments.hotzone_size),
        lock_policy=LockPolicy(max_time_s=arguments.max_time, idle_timeout_s=arguments.idle_timeout),
        kernel_options=tuple(arguments.kernel_options),
    )
    check_mountpoint(options.mountpoint)
    if os.path.realpath(arguments.payload) == options.mountpoint:
        raise UsageError(f"payload and mountpoint are the same file: {arguments.payload}")
    check_fuse(options.kernel_options)
    request = Request(arguments, secret_source(arguments), options)
    _check_given_descriptors(request)
    return request


def given_descriptors(request: Request) -> set[int]:
    """Return the descriptors that the header or the key comes through."""
    arguments = request.arguments
    names = [
        *(arguments.header or []),
        arguments.key_file,
        arguments.passphrase_file,
        arguments.volume_key_file,
    ]
    given = {source_descriptor(name) for name in names if name is not None}
    return {descriptor for descriptor in given if descriptor is not None}


def _check_given_descriptors(request: Request) -> None:
    """Raise DeviceError for a descriptor that is not open: something of ours could get its number."""
    for descriptor in given_descriptors(request):
        try:
            os.fstat(descriptor)
        except OSError:
            raise DeviceError(f"fd:{descriptor} is not open") from None


def close_given(request: Request) -> None:
    """Close what the header or the key came through: the daemon needs it no more."""
    for descriptor in given_descriptors(request) - {0, 1, 2}:
        os.close(descriptor)
