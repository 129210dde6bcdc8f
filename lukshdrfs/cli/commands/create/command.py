"""`lukshdrfs create`: a new volume, its header in a file of its own, on a device, or at the start of the payload."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.cli.arguments import (
    Parser,
    Subparsers,
    add_backing_chain,
    add_kdf,
    kdf_wish,
    key_bytes,
)
from lukshdrfs.cli.commands.create.header import header_form, write_header
from lukshdrfs.cli.commands.create.payload import fill, opened_payload
from lukshdrfs.cli.commands.create.request import check_header_is_no_payload, check_request
from lukshdrfs.cli.commands.create.secrets import new_secrets, new_slot, new_volume_key
from lukshdrfs.cli.commands.create.shared import share
from lukshdrfs.cli.overwriting import header_place
from lukshdrfs.cli.quantities import number, size
from lukshdrfs.limits import check_file_size
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keyslots import add_keyslot

log = logging.getLogger(__name__)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "create",
        help="make a new volume, with a detached header or an attached one",
        description="Make a header with a new volume key, and with --size the payload, which is filled with random "
        "bytes. The defaults are cryptsetup's. Neither a header nor data that is recognised is overwritten without "
        "--force.",
    )
    parser.add_argument("payload", metavar="PAYLOAD")
    parser.add_argument("--header", metavar="FILE", help="where the header goes; left out: the start of the payload")
    parser.add_argument(
        "--shared-header", metavar="FILE", help="a header that is there: this payload gets a key of its own in it, too"
    )
    parser.add_argument("--payload-name", metavar="NAME", help="with it: what to call this payload (its file's name)")
    parser.add_argument("--first-name", default="first", metavar="NAME", help="with it: what to call the first (first)")
    parser.add_argument("--size", type=size, metavar="N", help="create the payload with this many bytes (K, M, G, T)")
    parser.add_argument("--payload-format", default="raw", metavar="F", help="raw or qcow2 (raw)")
    add_backing_chain(parser)
    parser.add_argument("--type", default="luks2", metavar="T", help="luks2 or luks1 (luks2)")
    parser.add_argument("-c", "--cipher", default="aes-xts-plain64", metavar="SPEC", help="aes-xts-plain64")
    parser.add_argument("-s", "--key-size", type=number, metavar="BITS", help="512 for xts, else 256")
    parser.add_argument(
        "--sector-size", type=size, metavar="BYTES", help="4096 where the payload's size allows (luks2)"
    )
    parser.add_argument("--offset", type=size, metavar="N", help="where the data begin on the payload")
    parser.add_argument("--luks2-metadata-size", type=size, metavar="N", help="of one copy of the metadata (16K)")
    parser.add_argument("--luks2-keyslots-size", type=size, metavar="N", help="set aside for keyslots (16 MiB in all)")
    add_kdf(parser, "of digest, AF splitter and pbkdf2 (sha256)")
    parser.add_argument("--uuid", help="random")
    parser.add_argument("--label", default="")
    parser.add_argument("--subsystem", default="")
    parser.add_argument(
        "--wipe", action=argparse.BooleanOptionalAction, help="fill the payload with random bytes (a new one is)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a header, and data that is recognised")
    parser.add_argument(
        "--keep", metavar="FILE", help="with it: where the copy of an overwritten header goes (beside it)"
    )
    _add_secrets(parser)
    parser.set_defaults(run=run)


def _add_secrets(parser: Parser) -> None:
    parser.add_argument(
        "-d", "--key-file", action="append", default=[], metavar="SRC",
        help="all of a file's bytes are the key; path, fd:N, -; repeatable, each gets a keyslot",
    )  # fmt: skip
    parser.add_argument("--keyfile-offset", type=size, default=0, metavar="BYTES", help="skip these")
    parser.add_argument("-l", "--keyfile-size", type=size, metavar="BYTES", help="use only these many")
    parser.add_argument("--passphrase-file", metavar="SRC", help="the first line, without its newline")
    parser.add_argument("--volume-key-file", metavar="SRC", help="take this volume key; a random one if left out")
    parser.add_argument("-T", "--tries", type=number, default=3, metavar="N", help="times to ask (3)")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out. Whatever it made so far is gone again if it fails."""
    check_request(arguments)
    cipher = CipherSpec.parse(arguments.cipher)
    key_size = key_bytes(arguments.key_size, "--key-size") or cipher.key_sizes[-1]
    cipher.check_key_size(key_size)
    version = 1 if arguments.type == "luks1" else 2
    wish = kdf_wish(arguments, version, "sha256")
    wish.check()
    if arguments.shared_header is not None:
        return share(arguments, cipher, key_size, wish)
    with ExitStack() as held:
        place = None
        if arguments.header:
            check_header_is_no_payload(arguments)
            place = held.enter_context(header_place(arguments.header, force=arguments.force))
        payload, overwritten = held.enter_context(opened_payload(arguments))
        created = overwritten is None
        form = header_form(arguments, cipher, key_size, payload.size, created=created)
        with new_volume_key(arguments, key_size) as volume_key:
            area = form.written(volume_key)
            if arguments.header and not Path(arguments.header).is_block_device():
                check_file_size(f"header {arguments.header}", len(area))
            for secret in new_secrets(arguments):
                with secret:
                    header = parse_header(area)
                    slot = new_slot(arguments, header, key_size, wish)
                    area = add_keyslot(header, volume_key, secret, slot)[1].applied_to(area)
        if overwritten:
            overwritten.check_unchanged()  # somebody may have been asked for a passphrase since it was looked at
            overwritten.keep_header(arguments, arguments.payload)
            if place is None:
                overwritten.erase_signatures(payload.write)
        fill(arguments, payload, form, created=created)
        if place is None:
            payload.write(memoryview(area), 0)
        else:
            write_header(arguments, place, area)
            if overwritten:
                overwritten.erase_signatures(payload.write)
        payload.flush()
    return 0
