"""`lukshdrfs encrypt`, `decrypt` and `reencrypt`: what may be asked of them, and what they do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from lukshdrfs.cli.arguments import (
    Parser,
    Subparsers,
    add_backing_chain,
    add_header,
    add_kdf,
    add_new_secrets,
    add_secrets,
)
from lukshdrfs.cli.commands.convert.beginning import begin_decryption, begin_encryption, begin_reencryption
from lukshdrfs.cli.commands.convert.conversion import Conversion, check_together
from lukshdrfs.cli.commands.convert.steering import steer
from lukshdrfs.cli.mounted import is_mountpoint
from lukshdrfs.cli.one_header import header_name
from lukshdrfs.cli.quantities import number, size
from lukshdrfs.errors import DeviceError, NoHeader, UsageError

_Begin = Callable[[argparse.Namespace], Conversion]


def add_parser(subparsers: Subparsers) -> None:
    """Add the three commands."""
    _add_encrypt(subparsers)
    _add_decrypt(subparsers)
    _add_reencrypt(subparsers)


def _add_encrypt(subparsers: Subparsers) -> None:
    parser = _add(
        subparsers, "encrypt", "encrypt the data of a payload in place, under a new detached header",
        "Encrypt the plain data of a payload in place. The header is new and apart from it: the volume keeps its size. "
        "Whatever cuts it off, the same command goes on where it was.", begin_encryption,
    )  # fmt: skip
    parser.add_argument("--type", default="luks2", metavar="T", help="luks2; luks1: that at the end (luks2)")
    parser.add_argument("--uuid", help="random")
    parser.add_argument("--label", default="")
    parser.add_argument("--subsystem", default="")
    parser.add_argument("--luks2-metadata-size", type=size, metavar="N", help="of one copy of the metadata (16K)")
    parser.add_argument("--luks2-keyslots-size", type=size, metavar="N", help="set aside for keyslots (16 MiB in all)")
    parser.add_argument("--size", type=size, metavar="N", help="with --offset: encrypt this many bytes only")
    _add_cipher(parser, "512 for xts, else 256", "4096 where the payload's size allows")


def _add_reencrypt(subparsers: Subparsers) -> None:
    parser = _add(
        subparsers, "reencrypt", "give a volume another volume key, cipher or sector size, in place",
        "Encrypt a volume's data anew, in place. Whatever cuts it off, the same command goes on where it was. The "
        "passphrase that is given stays, with the new volume key; see --new-key-file for another one.",
        begin_reencryption,
    )  # fmt: skip
    parser.add_argument("--keep-key", action="store_true", help="another cipher or sector size, and the same key")
    _add_cipher(parser, "the volume's", "the volume's")


def _add_decrypt(subparsers: Subparsers) -> None:
    _add(
        subparsers, "decrypt", "decrypt a volume's data in place: the payload holds plain data again",
        "Decrypt a volume's data in place. Whatever cuts it off, the same command goes on where it was.",
        begin_decryption,
    )  # fmt: skip


def _add(subparsers: Subparsers, name: str, summary: str, description: str, begin: _Begin) -> Parser:
    parser = subparsers.add_parser(name, help=summary, description=description)
    parser.add_argument("payload", metavar="PAYLOAD", help="or the MOUNTPOINT of a volume that is half-converted")
    add_header(parser)
    add_secrets(parser)
    if name != "decrypt":
        add_kdf(parser, "of digest, AF splitter and pbkdf2 (sha256)")
    if name == "reencrypt":
        add_new_secrets(parser)
    parser.add_argument("--payload-format", default="raw", metavar="F", help="raw or qcow2 (raw)")
    add_backing_chain(parser)
    parser.add_argument("--offset", type=size, metavar="N", help="where the data begin on the payload")
    parser.add_argument("--init-only", action="store_true", help="write the header, and convert nothing yet")
    parser.add_argument("--resume-only", action="store_true", help="go on with what has begun, and begin nothing")
    parser.add_argument(
        "--resilience",
        metavar="R",
        help="what a step is recovered from that is cut off: checksum, journal (checksum)",
    )
    parser.add_argument("--resilience-hash", default="sha256", metavar="HASH", help="of its checksums (sha256)")
    parser.add_argument("--hotzone-size", type=size, metavar="N", help="bytes that a step converts, at most (16M)")
    parser.add_argument("--rate", type=size, metavar="N", help="bytes a second at most; 0: as fast as it can (0)")
    parser.add_argument("--pause", action="store_true", help="of what is mounted: stop after the step at hand")
    parser.add_argument(
        "--continue", action="store_true", dest="go_on", help="of what is mounted: go on, also after a failure"
    )
    parser.add_argument("--payload-timeout", type=number, default=25, metavar="S", help=argparse.SUPPRESS)
    parser.add_argument("--batch-mode", action="store_true", help="ask no questions")
    parser.add_argument("--force", action="store_true", help="convert whatever is recognised on the payload")
    parser.add_argument(
        "--progress-json", action="store_true", help="print a JSON line each second: bytes, speed, time left"
    )
    parser.set_defaults(run=lambda arguments: run(arguments, name, begin), keep=None, wipe=None)
    return parser


def _add_cipher(parser: Parser, key_size: str, sector_size: str) -> None:
    parser.add_argument("-c", "--cipher", metavar="SPEC", help="aes-xts-plain64" if key_size[0].isdigit() else key_size)
    parser.add_argument("-s", "--key-size", type=number, metavar="BITS", help=key_size)
    parser.add_argument("--sector-size", type=size, metavar="BYTES", help=sector_size)


def run(arguments: argparse.Namespace, mode: str, begin: _Begin) -> int:
    """Begin a conversion, or go on with one."""
    if arguments.pause or arguments.go_on or (not arguments.header and is_mountpoint(arguments.payload)):
        return steer(arguments, mode)
    check_together(arguments)
    name = header_name(arguments)
    is_new = mode == "encrypt" and not os.path.lexists(name)
    try:
        found = None if is_new else Conversion.found(arguments, mode)
    except NoHeader:
        if mode != "encrypt" or arguments.header:
            raise
        found = None
    if found is None:
        if arguments.resume_only:
            raise UsageError(f"header {name}: no conversion of this volume has begun; leave --resume-only out")
        if mode == "encrypt" and not arguments.header:
            raise UsageError(
                "encrypt keeps the volume's size, so its header goes elsewhere: name a new file with --header"
            )
        if mode == "encrypt" and not is_new:
            raise DeviceError(f"header {name} is there already, and no encryption has begun with it; name a new file")
        conversion = begin(arguments)
    else:
        if arguments.init_only:
            found.close()
            raise UsageError(f"header {name}: its conversion has begun already; leave --init-only out to go on")
        conversion = found
    with conversion:
        return 0 if arguments.init_only else conversion.run()
