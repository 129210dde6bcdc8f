"""`lukshdrfs install-mount-helper`: links by which mount(8) and umount(8) find this program."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.errors import DeviceError

HELPERS = {
    "mount.lukshdrfs": "mount.lukshdrfs",
    "mount.fuse.lukshdrfs": "mount.lukshdrfs",
    "umount.lukshdrfs": "umount.lukshdrfs",
    "umount.fuse.lukshdrfs": "umount.lukshdrfs",
}
"""The names that mount(8) and umount(8) look for ("EXTERNAL HELPERS"), and the installed program that each is."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "install-mount-helper",
        help="let mount(8), umount(8) and fstab find this program (as root)",
        description="Make links to this program under the names that mount(8) and umount(8) look for. What is there "
        "under these names already stays, unless it is a link to this program.",
    )
    parser.add_argument("--directory", default="/sbin", metavar="DIR", help="where they look (/sbin)")
    parser.add_argument("--remove", action="store_true", help="take the links away again")
    parser.add_argument("--force", action="store_true", help="replace, or remove, another installation's links as well")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out: all of it, or nothing."""
    programs = Path(sys.argv[0]).resolve().parent
    links = {Path(arguments.directory) / name: programs / program for name, program in HELPERS.items()}
    for link, target in links.items():
        if not arguments.remove and not target.exists():
            raise DeviceError(f"{target} is not there; install lukshdrfs with pip or pipx first")
        _check(link, target, force=arguments.force)
    for link, target in links.items():
        try:
            done = _remove(link) if arguments.remove else _install(link, target)
        except OSError as error:
            raise DeviceError(f"{link}: {os.strerror(error.errno or 0)}") from None
        if not arguments.quiet:
            sys.stdout.write(f"{done}\n")
    return 0


def _check(link: Path, target: Path, *, force: bool) -> None:
    """Raise DeviceError if what is there is not ours to touch."""
    if not os.path.lexists(link) or _leads_to(link) == target:
        return
    if not link.is_symlink():
        raise DeviceError(f"{link} is there already and is no link of lukshdrfs; it stays")
    if not force:
        raise DeviceError(f"{link} leads to {_leads_to(link)}, another installation; it stays (--force does not ask)")


def _leads_to(link: Path) -> Path | None:
    return link.readlink() if link.is_symlink() else None


def _install(link: Path, target: Path) -> str:
    """Make a link, or replace one in a single step; return what was done."""
    before = _leads_to(link)
    if before == target:
        return f"{link} -> {target} was there already"
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    try:
        temporary.rename(link)
    except BaseException:
        temporary.unlink()
        raise
    return f"{link} -> {target}" if before is None else f"{link} -> {target}, instead of {before}"


def _remove(link: Path) -> str:
    if not os.path.lexists(link):
        return f"{link} was not there"
    link.unlink()
    return f"{link} is removed"
