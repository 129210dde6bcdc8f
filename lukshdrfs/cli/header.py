"""`lukshdrfs header`: the header as an object of its own."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import uuid
from pathlib import Path
from typing import Any

from lukshdrfs.cli.arguments import (
    Parser,
    Subparsers,
    add_command,
    add_header,
    add_secrets,
    add_subcommands,
    pin,
    secret_source,
)
from lukshdrfs.cli.logs import printable
from lukshdrfs.cli.output import check_output, output_descriptor, write_header_out
from lukshdrfs.cli.overwriting import Overwritten
from lukshdrfs.cli.restoring import keep, repair_from, restore
from lukshdrfs.cli.unlocking import editable_header, header_name, readable_header, unlocked
from lukshdrfs.errors import HeaderError, InUse, LukshdrfsError, UnsupportedFeature, UsageError
from lukshdrfs.luks import Header, parse_header
from lukshdrfs.luks.backup import backup_of
from lukshdrfs.luks.convert import to_luks1, to_luks2
from lukshdrfs.luks.luks1_edit import set_uuid
from lukshdrfs.luks.luks2_edit import set_names
from lukshdrfs.luks.luks2_format import KEYSLOTS_SIZE, METADATA_SIZE
from lukshdrfs.luks.shared import choose_payload, exported, shared_payloads
from lukshdrfs.luks.verify import Finding, verify
from lukshdrfs.payload import FilePayload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import (
    LockedVolume,
    create_header_file,
    fill_with_random,
    parse_from,
    plaintext_signature,
    read_header,
    repair_header,
    source_descriptor,
)

log = logging.getLogger(__name__)

DETACHED_SIZE = METADATA_SIZE * 2 + KEYSLOTS_SIZE
"""Bytes of a LUKS2 header, as `create` makes it."""


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
    parser.set_defaults(run=_verify)

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
    parser.set_defaults(run=_convert)

    parser = add_command(commands, "export", "make an attached header a detached one")
    parser.add_argument("names", nargs="+", metavar="PAYLOAD FILE")
    add_header(parser)
    parser.add_argument(
        "--wipe", action="store_true", help="fill its place on the payload with random bytes afterwards"
    )
    parser.add_argument("--payload-name", metavar="NAME", help="of a header that several payloads share: this one's")
    parser.set_defaults(run=_export)

    parser = add_command(commands, "attach", "write a detached header to the start of its payload")
    _add_target(parser)
    parser.add_argument("--force", action="store_true", help="even if something is recognised there")
    parser.add_argument(
        "--keep", metavar="FILE", help="where the copy of a header that is overwritten goes (beside it)"
    )
    parser.set_defaults(run=_attach)

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
    _say(f"{file} is as secret as the header: passphrases that are removed later still open it")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    backup = read_header(_split_names(arguments))
    restore(arguments, backup, header_name(arguments))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    name = header_name(arguments)
    findings: list[Finding] = []
    document: dict[str, Any] = {"header": name, "type": None, "uuid": None}
    unsupported = False
    try:
        header = read_header(name, pin(arguments), warn=False)
    except HeaderError as error:
        findings.append(Finding("error", "header", str(error)))
        unsupported = isinstance(error, UnsupportedFeature)
    else:
        document |= {"type": header.type, "uuid": header.uuid}
        findings += verify(header, max(_size(name), len(header.area)))
        if arguments.header and arguments.payload:
            findings += _verify_payload(header, arguments.payload)
        findings += _verify_secret(header, arguments)
    sound = not any(finding.severity == "error" for finding in findings)
    document |= {
        "sound": None if unsupported else sound,
        "findings": [
            {"severity": finding.severity, "subject": finding.subject, "text": finding.text} for finding in findings
        ],
    }
    if arguments.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.severity:<7}  {finding.subject}: {printable(finding.text)}\n")
        sys.stdout.write("sound\n" if sound else "not supported\n" if unsupported else "damaged\n")
    return 0 if sound else HeaderError.exit_code


def _size(name: str) -> int:
    """Return the bytes of a file; 0 for what has no size of its own."""
    return 0 if source_descriptor(name) is not None else Path(name).stat().st_size


def _verify_secret(header: Header, arguments: argparse.Namespace) -> list[Finding]:
    if not arguments.ask and not secret_source(arguments).named:
        return []
    with unlocked(header, arguments) as key:
        subject = "volume key" if key.keyslot is None else f"keyslot {key.keyslot}"
        found = [Finding("note", subject, f"the key fits digest {key.digest}")]
        if arguments.payload:
            found += _verify_pair(header, arguments, key.volume_key)
    return found


def _verify_pair(header: Header, arguments: argparse.Namespace, volume_key: SecretBytes) -> list[Finding]:
    """Look whether something is recognised in the plaintext: then header and payload belong together."""
    detached = bool(arguments.header)
    if not detached and header.segments[0].offset < len(header.area):
        return []  # it is the header file itself
    try:
        with (
            FilePayload.open(arguments.payload, read_only=True, locked=False) as payload,
            LockedVolume(header, payload, detached=detached).unlock_with_volume_key(volume_key) as volume,
        ):
            found = plaintext_signature(volume)
    except LukshdrfsError as error:
        return [Finding("error", "payload", str(error))]
    if found:
        return [Finding("note", "pair", f"the plaintext holds {found}: header and payload belong together")]
    text = "nothing is recognised in the plaintext: the volume is empty, or this is not its header"
    return [Finding("warning", "pair", text)]


def _verify_payload(header: Header, name: str) -> list[Finding]:
    try:
        with FilePayload.open(name, read_only=True) as payload:
            size = LockedVolume(header, payload, detached=True).size
    except LukshdrfsError as error:
        return [Finding("error", "payload", str(error))]
    return [Finding("note", "payload", f"it has room for the segments: {size} bytes of plaintext")]


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


def _convert(arguments: argparse.Namespace) -> int:
    if arguments.type not in ("luks1", "luks2"):
        raise UsageError(f"--type {arguments.type}: expected luks2 or luks1")
    if arguments.output:
        check_output(arguments.output)
        header = readable_header(arguments)
        write_header_out(arguments.output, _converted(header, arguments.type, DETACHED_SIZE))
        return 0
    with editable_header(arguments, alone=True) as file:
        room = DETACHED_SIZE if file.is_detached else min(DETACHED_SIZE, file.size)
        data = _converted(file.header, arguments.type, room)
        if not file.is_detached:
            keep(arguments, file.name, file.read(max(len(file.header.area), len(data))))
        file.replace(data)
    return 0


def _converted(header: Header, type_: str, room: int) -> bytes:
    """Return the header of the other type, after reading it as anybody would. `room` (bytes) is a detached one's."""
    if header.type == type_:
        raise UsageError(f"the header is {type_} already")
    data = to_luks1(header) if type_ == "luks1" else to_luks2(header, header.segments[0].offset or room)
    converted = parse_header(data)
    if converted.uuid != header.uuid or len(converted.keyslots) != len(header.keyslots):
        raise HeaderError("the converted header does not say what this one says; nothing was changed")
    return data


def _export(arguments: argparse.Namespace) -> int:
    names: list[str] = [*arguments.names, *(arguments.header or [])]
    if len(names) != 2:
        raise UsageError("expected a payload and the file that its header goes to")
    payload, file = names
    check_output(file)
    header = read_header(payload)
    if arguments.payload_name is not None:
        return _export_payload(arguments, header, file)
    if header.segments[0].offset < len(header.area):
        raise UsageError(f"{payload} is a detached header already")
    if arguments.wipe and shared_payloads(header):
        raise UsageError("--wipe: the header is for several payloads, which may lie behind it; it stays")
    if arguments.wipe:
        _move_out(payload, header, file)
    else:
        write_header_out(file, backup_of(header))
    return 0


def _export_payload(arguments: argparse.Namespace, header: Header, file: str) -> int:
    """Write a header for one payload of a shared one."""
    if arguments.wipe:
        raise UsageError("--wipe is for an attached header")
    chosen = choose_payload(header, arguments.payload_name, "")
    assert chosen is not None
    write_header_out(file, exported(header, chosen))
    return 0


def _move_out(payload: str, header: Header, file: str) -> None:
    """Write an attached header to a file, and fill its place with random bytes once the file says the same."""
    if output_descriptor(file) is not None:
        raise UsageError("--wipe: what goes to a pipe cannot be read again; name a file")
    with FilePayload.open(payload, read_only=False) as opened:
        # it may be another file by now, or have been changed: what counts is what is open, and nobody else's any more
        if parse_from(opened.descriptor, payload, warn=False).area != header.area:
            raise InUse(f"{payload} has been changed by another program meanwhile; nothing was done")
        create_header_file(Path(file), backup_of(header))
        if read_header(file).area != header.area:
            raise HeaderError(f"header {file} does not read back as it was written; {payload} keeps its own")
        fill_with_random(opened, 0, min(segment.offset for segment in header.segments))


def _attach(arguments: argparse.Namespace) -> int:
    if not arguments.header or not arguments.payload:
        raise UsageError("name the header with --header, and its payload")
    header = readable_header(arguments)
    data, first = backup_of(header), header.segments[0].offset
    if first < len(header.area):
        raise UsageError(
            f"the data begin at byte {first} of the payload, the header takes {len(header.area)}: no room for it there"
        )
    with FilePayload.open(arguments.payload, read_only=False) as payload:
        LockedVolume(header, payload, detached=False)
        # all of it, and not its start only: what reaches over the data says that it is another payload
        overwritten = Overwritten(payload, f"payload {payload.name}")
        overwritten.refuse(force=arguments.force)
        overwritten.check_unchanged()
        overwritten.keep_header(arguments, arguments.payload)
        overwritten.erase_signatures(payload.write)
        payload.write(memoryview(data[:first]), 0)
        payload.flush()
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


def checked_uuid(text: str) -> str:
    """Return a UUID in its usual form. Raises UsageError for a text that is none."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UsageError(f"--uuid {text}: not a UUID") from None


def _say(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"{printable(text)}\n")
