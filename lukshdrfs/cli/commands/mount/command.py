"""`lukshdrfs mount`: unlock, show the image, go to the background once it can be read."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace

from lukshdrfs.cli.arguments import (
    Subparsers,
    add_backing_chain,
    add_header,
    add_secrets,
    payload_name,
)
from lukshdrfs.cli.commands.mount import next_steps
from lukshdrfs.cli.commands.mount.background import run_in_background
from lukshdrfs.cli.commands.mount.completeness import warn_of_changed_size
from lukshdrfs.cli.commands.mount.fstab_options import apply_options
from lukshdrfs.cli.commands.mount.next_steps import FIRST_BLOCK, read_first_block
from lukshdrfs.cli.commands.mount.request import (
    CACHE_MODES,
    DATA_PATHS,
    Request,
    checked_request,
    close_given,
    given_descriptors,
)
from lukshdrfs.cli.commands.mount.systemd import notify
from lukshdrfs.cli.commands.mount.unlocking import unlock_first
from lukshdrfs.cli.missing_header import naming_the_way
from lukshdrfs.cli.outcome import exit_status
from lukshdrfs.cli.quantities import number, seconds, size
from lukshdrfs.cli.terminal import logs
from lukshdrfs.errors import LukshdrfsError
from lukshdrfs.fuse import MountOptions, serve
from lukshdrfs.limits import limits_of_service
from lukshdrfs.payload import (
    is_network,
)
from lukshdrfs.payload.nbd.payload import PATIENCE_S
from lukshdrfs.secret import become_io_flusher, lock_process_memory
from lukshdrfs.volume import PassOver, Volume

log = logging.getLogger(__name__)


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
    parser.add_argument(
        "--convert", action="store_true", help="go on with the conversion of a volume that is half-converted"
    )
    parser.add_argument("--rate", type=size, metavar="N", help="of the conversion: bytes a second at most")
    parser.add_argument("--hotzone-size", type=size, metavar="N", help="bytes that a step of it converts (4M)")
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


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; return when the image can be read (or, in the foreground, is gone)."""
    arguments.kernel_options = []
    apply_options(arguments, arguments.options, sloppy=arguments.sloppy)
    arguments.pass_over = PassOver(force=arguments.force, raw=arguments.payload_format == "raw")
    arguments.payload_format = arguments.payload_format or "raw"
    request = checked_request(arguments)
    if arguments.foreground:
        return _unlock_and_serve(request, lambda volume: _show_next_steps(request, volume))
    status = run_in_background(
        lambda ready: exit_status(lambda: _serve_in_background(request, ready)),
        verify=lambda: read_first_block(request.options.image),
        keep=given_descriptors(request),
    )
    if status == 0:
        _show_next_steps(request, None)
    return status


def _serve_in_background(request: Request, ready: Callable[[], None]) -> int:
    with naming_the_way(request.arguments):
        return _unlock_and_serve(request, lambda _volume: _go_to_background(ready))


def _unlock_and_serve(request: Request, ready: Callable[[Volume], None]) -> int:
    if not become_io_flusher():  # before any thread or program is started that the payload needs
        log.debug("a loop device on the image may have to wait for memory: CAP_SYS_RESOURCE is not there")
    volume, header_name = unlock_first(request)
    grows = not volume.read_only and not payload_name(request.arguments).is_plain
    for warning in limits_of_service(volume.size if grows and not is_network(request.arguments.payload) else None):
        log.warning("%s", warning)
    options = request.options
    if request.arguments.lock_on_header_removal and header_name is not None:
        # the daemon leaves the working directory; links stay links, for udev takes them away with their device
        path = os.path.abspath(header_name)  # noqa: PTH100
        options = replace(options, lock_policy=replace(options.lock_policy, header=path))
    try:
        close_given(request)
        if request.arguments.convert and volume.conversion:
            volume.conversion.check_online()
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


def _show_next_steps(request: Request, volume: Volume | None) -> None:
    """Tell how to go on, unless that was not wanted: before the volume is served, or else as the mount shows it."""
    if request.arguments.quiet:
        return
    if volume:
        next_steps.show_of_volume(volume, request.options)
    else:
        next_steps.show_of_image(request.options, read_only=request.arguments.read_only)
