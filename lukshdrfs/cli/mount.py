"""`lukshdrfs mount`: unlock, show the image, go to the background once it can be read."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

from lukshdrfs.cli import logs, next_steps
from lukshdrfs.cli.arguments import (
    Subparsers,
    add_backing_chain,
    add_header,
    add_secrets,
    kdf_limits,
    pin,
    secret_source,
)
from lukshdrfs.cli.completeness import warn_of_changed_size
from lukshdrfs.cli.keyring import token_secrets
from lukshdrfs.cli.missing_header import naming_the_way
from lukshdrfs.cli.mount_options import apply_options
from lukshdrfs.cli.outcome import exit_status
from lukshdrfs.cli.quantities import number, seconds, size
from lukshdrfs.cli.secrets import SecretSource
from lukshdrfs.cli.service import notify
from lukshdrfs.cli.waiting import wait_for_any
from lukshdrfs.errors import DeviceError, LukshdrfsError, UsageError, WrongKey
from lukshdrfs.fuse import (
    DataPath,
    LockPolicy,
    MountOptions,
    check_fuse,
    check_mountpoint,
    check_not_mounted,
    run_in_background,
    serve,
)
from lukshdrfs.limits import check_file_size, limits_of_service
from lukshdrfs.luks import Header, KdfLimits
from lukshdrfs.luks.shared import choose_payload, header_for
from lukshdrfs.luks.unlock_work import check_work
from lukshdrfs.payload import FilePayload, NbdPayload, Payload, check_format, is_network, is_plain, open_indirect
from lukshdrfs.payload.nbd import PATIENCE_S
from lukshdrfs.secret import SecretBytes, become_io_flusher, lock_process_memory
from lukshdrfs.volume import (
    LockedVolume,
    PassOver,
    Volume,
    Window,
    check_raw,
    lock_volume,
    parse_from,
    read_header,
    source_descriptor,
    window_of,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

CACHE_MODES = ("writeback", "writethrough", "none")
TRUNCATION = ("refuse", "ignore")
DATA_PATHS = get_args(DataPath)
MAX_WORKERS = 1024
FIRST_BLOCK = 4096
"""Bytes that are read to see that the image can be."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "mount",
        help="unlock a volume and show it as a file",
        description="Unlock a volume and show its plaintext as the one file in MOUNTPOINT. Returns once the image can "
        "be read, and goes on in the background; without a key option, asks for the passphrase. The image behaves like "
        "a block device: its size is fixed, and a write past its end fails.",
    )
    parser.add_argument("payload", metavar="PAYLOAD")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory, or a file to mount over")
    add_header(parser)
    add_secrets(parser)
    parser.add_argument("-r", "--read-only", action="store_true", help="refuse every write")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("--name", default="image", help="name of the file in the mounted directory (image)")
    parser.add_argument(
        "--payload-format", metavar="F", help="raw or qcow2; never guessed: raw, unless the payload looks like an image"
    )
    parser.add_argument(
        "--force", action="store_true", help="even if something else is recognised where the data should be"
    )
    add_backing_chain(parser)
    parser.add_argument("--cache", default="writeback", metavar="MODE", help=f"{', '.join(CACHE_MODES)} (writeback)")
    parser.add_argument("--workers", type=number, default=16, metavar="N", help="requests served at once (16)")
    parser.add_argument(
        "--force-header", action="store_true", help="take a damaged header, to save what can be read (-r)"
    )
    parser.add_argument("--preserve-times", action="store_true", help="leave the payload's times as they were")
    parser.add_argument("--payload-name", metavar="NAME", help="which payload of a header that several share")
    parser.add_argument("--growable", action="store_true", help="truncate of the image resizes the payload, a file")
    parser.add_argument(
        "--truncate", default="refuse", metavar="HOW", help="what opening with O_TRUNC does: refuse, ignore (refuse)"
    )
    parser.add_argument("--data-path", default="auto", metavar="P", help=f"{', '.join(DATA_PATHS)} (auto)")
    parser.add_argument("--offset", type=size, metavar="N", help="where the data start, if the header says 0")
    parser.add_argument("--size", type=size, metavar="N", help="how much data there is, if the header leaves it open")
    parser.add_argument("--header-timeout", type=seconds, metavar="S", help="wait so long for the header to be there")
    parser.add_argument(
        "--payload-timeout", type=seconds, default=PATIENCE_S, metavar="S",
        help=f"wait so long for an NBD server that is away ({PATIENCE_S:.0f}s)",
    )  # fmt: skip
    parser.add_argument("--lock-on-header-removal", action="store_true", help="lock when the header goes away")
    parser.add_argument("--max-time", type=seconds, metavar="S", help="lock after so many seconds (or 8h, 30m)")
    parser.add_argument("--idle-timeout", type=seconds, metavar="S", help="lock when it is not used for so long")
    parser.add_argument("-o", action="append", default=[], dest="options", metavar="OPT", help="as in fstab")
    parser.add_argument("--sloppy", action="store_true", help=argparse.SUPPRESS)  # of mount(8): unknown -o are left out
    parser.set_defaults(run=run, fsname=None, uid=None, gid=None, umask=None)


@dataclass(frozen=True, slots=True)
class _Request:
    """A checked command line."""

    arguments: argparse.Namespace
    secrets: SecretSource
    options: MountOptions


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; return when the image can be read (or, in the foreground, is gone)."""
    arguments.kernel_options = []
    apply_options(arguments, arguments.options, sloppy=arguments.sloppy)
    arguments.pass_over = PassOver(force=arguments.force, raw=arguments.payload_format == "raw")
    arguments.payload_format = arguments.payload_format or "raw"
    request = _check(arguments)
    if arguments.foreground:
        return _unlock_and_serve(request, lambda volume: _show_next_steps(request, volume))
    status = run_in_background(
        lambda ready: exit_status(lambda: _serve_in_background(request, ready)),
        verify=lambda: _read_first_block(request.options.image),
        keep=_given_descriptors(request),
    )
    if status == 0:
        _show_next_steps(request, None)
    return status


def _check_values(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a value that no mount can have."""
    check_format(arguments.payload, arguments.payload_format, backing_chain=arguments.backing_chain)
    if arguments.preserve_times and not is_plain(arguments.payload, arguments.payload_format):
        raise UsageError("--preserve-times is for plain files and devices")
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


def _check(arguments: argparse.Namespace) -> _Request:
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
        lock_policy=LockPolicy(max_time_s=arguments.max_time, idle_timeout_s=arguments.idle_timeout),
        kernel_options=tuple(arguments.kernel_options),
    )
    check_mountpoint(options.mountpoint)
    if os.path.realpath(arguments.payload) == options.mountpoint:
        raise UsageError(f"payload and mountpoint are the same file: {arguments.payload}")
    check_fuse(options.kernel_options)
    request = _Request(arguments, secret_source(arguments), options)
    _check_given_descriptors(request)
    return request


def _serve_in_background(request: _Request, ready: Callable[[], None]) -> int:
    with naming_the_way(request.arguments):
        return _unlock_and_serve(request, lambda _volume: _go_to_background(ready))


def _unlock_and_serve(request: _Request, ready: Callable[[Volume], None]) -> int:
    if not become_io_flusher():  # before any thread or program is started that the payload needs
        log.debug("a loop device on the image may have to wait for memory: CAP_SYS_RESOURCE is not there")
    volume, header_name = _unlock(request)
    grows = not volume.read_only and not is_plain(request.arguments.payload, request.arguments.payload_format)
    for warning in limits_of_service(volume.size if grows and not is_network(request.arguments.payload) else None):
        log.warning("%s", warning)
    options = request.options
    if request.arguments.lock_on_header_removal and header_name is not None:
        # the daemon leaves the working directory; links stay links, for udev takes them away with their device
        path = os.path.abspath(header_name)  # noqa: PTH100
        options = replace(options, lock_policy=replace(options.lock_policy, header=path))
    try:
        _close_given(request)
        warn_of_changed_size(volume, request.arguments.payload, options.image)
        if not lock_process_memory():
            log.debug("only the keys are locked in memory, not the ciphers' key schedules")
        serve(
            volume,
            options,
            lambda: ready(volume),
            serving=lambda: _tell_manager(volume, options),
            end_on_hangup=request.arguments.foreground and sys.stdin.isatty(),  # a service has no terminal to lose
        )
    finally:
        notify("STOPPING=1")
        volume.close()
    return 0


def _tell_manager(volume: Volume, options: MountOptions) -> None:
    """Tell systemd that the image can be read, once its first block has been."""
    try:
        volume.pread(FIRST_BLOCK, 0)
    except LukshdrfsError as error:
        notify(f"STATUS={error}")
    else:
        notify("READY=1", f"STATUS={options.source} is at {options.image}")


def _go_to_background(ready: Callable[[], None]) -> None:
    ready()
    logs.to_syslog()


def _unlock(request: _Request) -> tuple[Volume, str | None]:
    """Return the volume that the first working header opens, and that header; say what was wrong with the others."""
    arguments = request.arguments
    window = Window(arguments.offset, arguments.size)
    early: Payload | None = None

    def read(name: str | None) -> tuple[str | None, Header]:
        if name is None and isinstance(early, NbdPayload):
            header = parse_from(early, early.name, pin(arguments), salvage=True, forced=arguments.force_header)
        else:
            header = read_header(
                arguments.payload if name is None else name,
                pin(arguments),
                salvage=True,
                forced=arguments.force_header,
            )
        payload = choose_payload(header, arguments.payload_name, arguments.payload)
        return name, header if payload is None else header_for(header, payload)

    def lock(named: tuple[str | None, Header]) -> LockedVolume:
        locked = lock_volume(payload, named[1], header_name=named[0], window=window)
        locked.check_place(arguments.pass_over)
        if request.secrets.volume_key_file is None:
            locked.check_work(arguments.key_slot, kdf_limits(arguments))
        return locked

    if arguments.header_timeout is not None:
        wait_for_any(arguments.header or [arguments.payload], arguments.header_timeout)
    try:
        if not is_plain(arguments.payload, arguments.payload_format) and not arguments.header:
            early = _open_payload(arguments, None)  # the header is in it
        headers = _usable(read, arguments.header or [None])
        part = window_of([header for _, header in headers], window) if arguments.header else None
        payload = early or _open_payload(arguments, part)
        early = payload
        check_raw(payload, arguments.pass_over)
        return _try_secrets(_usable(lock, headers), request)
    except BaseException:
        if early:
            early.close()
        raise


def _open_payload(arguments: argparse.Namespace, part: tuple[int, int] | None) -> Payload:
    """Open the payload, or that part of it that is meant."""
    write_through = arguments.cache == "writethrough"
    if not is_plain(arguments.payload, arguments.payload_format):
        return open_indirect(
            arguments.payload,
            arguments.payload_format,
            read_only=arguments.read_only,
            write_through=write_through,
            patience_s=arguments.payload_timeout,
            backing_chain=arguments.backing_chain,
        )
    payload = FilePayload.open(
        arguments.payload,
        read_only=arguments.read_only,
        write_through=write_through,
        preserve_times=arguments.preserve_times,
        window=part,
    )
    try:
        if payload.is_regular and not payload.read_only:
            check_file_size(f"payload {payload.name}", payload.size if part is None else sum(part))
    except BaseException:
        payload.close()
        raise
    return payload


def _usable(work: Callable[[T], R], candidates: Iterable[T]) -> list[R]:
    """Do something with each candidate; return the results, or raise the last error if there is no result."""
    results: list[R] = []
    problems: list[LukshdrfsError] = []
    for candidate in candidates:
        try:
            results.append(work(candidate))
        except LukshdrfsError as error:
            problems.append(error)
    last = None if results else problems.pop()
    for problem in problems:
        log.warning("%s; trying another header", problem)
    if last:
        raise last
    return results


def _try_secrets(candidates: list[LockedVolume], request: _Request) -> tuple[Volume, str | None]:
    """Ask until a secret opens one of the candidates, or as often as allowed. Keys that tokens name are tried first."""
    if not request.secrets.named:
        opened = _try_tokens(candidates, request)
        if opened is not None:
            return opened
    prompt = f"Passphrase for {request.arguments.payload}: "
    return request.secrets.try_until(prompt, lambda secret: _open_any(candidates, secret, request))


def _try_tokens(candidates: list[LockedVolume], request: _Request) -> tuple[Volume, str | None] | None:
    """Return the volume that a key in the kernel's keyring opens, if a token of the header names one."""
    wanted, spent, limits = request.arguments.key_slot, 0, kdf_limits(request.arguments) or KdfLimits()
    for locked in candidates:
        for secret, keyslots in token_secrets(locked.header):
            with secret:
                for keyslot in (number for number in keyslots if wanted in (None, number)):
                    try:
                        slots = [slot for slot in locked.header.keyslots if slot.id == keyslot]
                        spent = check_work(locked.header, slots, limits, before=spent)
                        volume = locked.unlock(secret, keyslot, limits)
                    except LukshdrfsError as error:
                        log.info("keyslot %d, with its token's key: %s", keyslot, error)
                    else:
                        return volume, locked.header_name
    return None


def _open_any(candidates: list[LockedVolume], secret: SecretBytes, request: _Request) -> tuple[Volume, str | None]:
    problems: list[LukshdrfsError] = []
    for locked in candidates:
        try:
            limits = kdf_limits(request.arguments)
            if request.secrets.volume_key_file is not None:
                return locked.unlock_with_volume_key(secret, limits), locked.header_name
            return locked.unlock(secret, request.arguments.key_slot, limits), locked.header_name
        except LukshdrfsError as error:
            problems.append(type(error)(f"{request.arguments.payload}: {error}"))
    raise next((problem for problem in problems if isinstance(problem, WrongKey)), problems[-1])


def _given_descriptors(request: _Request) -> set[int]:
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


def _check_given_descriptors(request: _Request) -> None:
    """Raise DeviceError for a descriptor that is not open: something of ours could get its number."""
    for descriptor in _given_descriptors(request):
        try:
            os.fstat(descriptor)
        except OSError:
            raise DeviceError(f"fd:{descriptor} is not open") from None


def _close_given(request: _Request) -> None:
    """Close what the header or the key came through: the daemon needs it no more."""
    for descriptor in _given_descriptors(request) - {0, 1, 2}:
        os.close(descriptor)


def _read_first_block(image: str) -> None:
    try:
        descriptor = os.open(image, os.O_RDONLY)
    except PermissionError:
        return  # the mount has answered; the image is meant for somebody else (`uid=`)
    try:
        os.pread(descriptor, FIRST_BLOCK, 0)
    finally:
        os.close(descriptor)


def _show_next_steps(request: _Request, volume: Volume | None) -> None:
    """Tell how to go on, unless that was not wanted: before the volume is served, or else as the mount shows it."""
    if request.arguments.quiet:
        return
    if volume:
        next_steps.show_of_volume(volume, request.options)
    else:
        next_steps.show_of_image(request.options, read_only=request.arguments.read_only)
