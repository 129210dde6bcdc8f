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
        description="Make links to this program under the names that mount(8) and umount(8) look for.",
    )
    parser.add_argument("--directory", default="/sbin", metavar="DIR", help="where they look (/sbin)")
    parser.add_argument("--remove", action="store_true", help="take the links away again")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out. What is there under these names and is not ours stays as it is."""
    programs = Path(sys.argv[0]).resolve().parent
    for name, program in HELPERS.items():
        link, target = Path(arguments.directory) / name, programs / program
        try:
            if arguments.remove:
                _remove(link)
            else:
                _install(link, target)
        except OSError as error:
            raise DeviceError(f"{link}: {os.strerror(error.errno or 0)}") from None
    return 0


def _install(link: Path, target: Path) -> None:
    if not target.exists():
        raise DeviceError(f"{target} is not there; install lukshdrfs with pip or pipx first")
    if os.path.lexists(link):
        if not _is_ours(link):
            raise DeviceError(f"{link} is there already, and is not ours; remove it first")
        link.unlink()
    link.symlink_to(target)


def _remove(link: Path) -> None:
    if not os.path.lexists(link):
        return
    if not _is_ours(link):
        raise DeviceError(f"{link} is not ours; it stays")
    link.unlink()


def _is_ours(link: Path) -> bool:
    return link.is_symlink() and link.readlink().name in HELPERS.values()
