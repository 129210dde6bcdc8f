"""`lukshdrfs header`: the header as an object of its own."""

from __future__ import annotations

import argparse
import logging
import sys

from lukshdrfs.cli.arguments import (
    Parser,
    Subparsers,
    add_command,
    add_header,
    add_secrets,
    add_subcommands,
    checked_uuid,
)
from lukshdrfs.cli.commands.header.export import run_attach, run_convert, run_export
from lukshdrfs.cli.commands.header.restore import repair_from, restore
from lukshdrfs.cli.commands.header.verify import run_verify
from lukshdrfs.cli.one_header import editable_header, header_name, readable_header
from lukshdrfs.cli.output import check_output, write_header_out
from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.errors import UsageError
from lukshdrfs.headers import read_header, repair_header
from lukshdrfs.luks.backup import backup_of
from lukshdrfs.luks.luks1.edit import set_uuid
from lukshdrfs.luks.luks2.edit import set_names
from lukshdrfs.luks.luks2.requirements import is_reencrypt_candidate

log = logging.getLogger(__name__)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command and its subcommands."""
    commands = add_subcommands(subparsers, "header", "back up, restore, check, repair, convert and move headers")

    parser = add_command(commands, "backup", "write a header and all its keyslots to a new file")
    _add_target_and_file(parser, "--header-backup-file", "the new file, or - (standard output)")
    parser.set_defaults(run=_backup)

    parser = add_command(commands, "restore", "put a backup in the place of a header; what was there is kept")
    _add_target_and_file(parser, "--header-backup-file", "the backup, or - (standard input)")
    parser.add_argument("--keep", metavar="FILE", help="where the copy of what is overwritten goes (beside the header)")
    parser.add_argument(
        "--force", action="store_true", help="even if it is another volume's, or something else is there"
    )
    parser.set_defaults(run=_restore)

    parser = add_command(commands, "verify", "check everything there is to check; exit status 4 if it is damaged")
    _add_target(parser)
    add_secrets(parser)
    parser.add_argument("--ask", action="store_true", help="check a passphrase, too; ask for it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run_verify)

    parser = add_command(commands, "repair", "mend a damaged header from what is known about it")
    _add_target(parser)
    parser.add_argument(
        "--from", dest="source", metavar="FILE", help="put this sound copy in its place, if it is damaged"
    )
    parser.add_argument("--keep", metavar="FILE", help="with --from: where the copy of what is overwritten goes")
    parser.add_argument("--force", action="store_true", help="even if something else is recognised in its place")
    parser.set_defaults(run=_repair)

    parser = add_command(commands, "convert", "make a LUKS1 header LUKS2, or the other way round")
    _add_target(parser)
    parser.add_argument("--type", required=True, metavar="T", help="luks2 or luks1")
    parser.add_argument("--output", metavar="FILE", help="write the other header there, or to -; this one stays")
    parser.add_argument(
        "--keep", metavar="FILE", help="where the copy of an attached header goes before it is overwritten"
    )
    parser.set_defaults(run=run_convert)

    parser = add_command(commands, "export", "make an attached header a detached one")
    parser.add_argument("names", nargs="+", metavar="PAYLOAD FILE")
    add_header(parser)
    parser.add_argument(
        "--wipe", action="store_true", help="fill its place on the payload with random bytes afterwards"
    )
    parser.add_argument("--payload-name", metavar="NAME", help="of a header that several payloads share: this one's")
    parser.set_defaults(run=run_export)

    parser = add_command(commands, "attach", "write a detached header to the start of its payload")
    _add_target(parser)
    parser.add_argument("--force", action="store_true", help="even if something is recognised there")
    parser.add_argument(
        "--keep", metavar="FILE", help="where the copy of a header that is overwritten goes (beside it)"
    )
    parser.set_defaults(run=run_attach)

    parser = add_command(commands, "set", "change label, subsystem or UUID")
    _add_target(parser)
    parser.add_argument("--label", metavar="L", help="luks2")
    parser.add_argument("--subsystem", metavar="S", help="luks2")
    parser.add_argument("--uuid", metavar="U")
    parser.set_defaults(run=_set)


def _add_target(parser: Parser) -> None:
    parser.add_argument("payload", nargs="?", metavar="PAYLOAD", help="or the header itself")
    add_header(parser)


def _add_target_and_file(parser: Parser, option: str, what: str) -> None:
    parser.add_argument("names", nargs="*", metavar="[PAYLOAD] FILE", help=f"the payload or header, and {what}")
    add_header(parser)
    parser.add_argument(option, dest="file", metavar="FILE", help=f"{what}, by its name")


def _split_names(arguments: argparse.Namespace) -> str:
    """Return the file; the payload, if one is named, goes to `arguments.payload`."""
    names = list(arguments.names)
    file = arguments.file or (names.pop() if names else None)
    if file is None or len(names) > 1:
        raise UsageError("expected a payload (or --header) and one file")
    arguments.payload = names[0] if names else None
    return str(file)


def _backup(arguments: argparse.Namespace) -> int:
    file = _split_names(arguments)
    check_output(file)
    header = readable_header(arguments)
    write_header_out(file, backup_of(header))
    if any(is_reencrypt_candidate(name) for name in header.requirements):
        log.warning(
            "%s is of a volume that is being converted, and good only as long as that does not go on: make another one "
            "when it is over",
            file,
        )
    _say(f"{file} is as secret as the header: passphrases that are removed later still open it")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    backup = read_header(_split_names(arguments))
    restore(arguments, backup, header_name(arguments))
    return 0


def _repair(arguments: argparse.Namespace) -> int:
    if arguments.source is not None:
        found = repair_from(arguments, header_name(arguments))
    else:
        found = repair_header(header_name(arguments), force=arguments.force)
    for line in found:
        sys.stdout.write(f"repaired: {printable(line)}\n")
    if not found:
        sys.stdout.write("nothing to repair\n")
    return 0


def _set(arguments: argparse.Namespace) -> int:
    if arguments.label is None and arguments.subsystem is None and arguments.uuid is None:
        raise UsageError("name what to change: --label, --subsystem or --uuid")
    identifier = None if arguments.uuid is None else checked_uuid(arguments.uuid)
    with editable_header(arguments) as file:
        if file.header.version == 1:
            if identifier is None or arguments.label is not None or arguments.subsystem is not None:
                raise UsageError("LUKS1 has neither label nor subsystem; convert the header to luks2 first")
            file.apply(set_uuid(identifier))
        else:
            file.apply(set_names(file.header, label=arguments.label, subsystem=arguments.subsystem, uuid=identifier))
    return 0


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{printable(text)}\n")
