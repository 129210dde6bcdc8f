"""`lukshdrfs header export`, `attach` and `convert`: a header that goes elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from lukshdrfs.cli.kept_copies import keep
from lukshdrfs.cli.one_header import editable_header, readable_header
from lukshdrfs.cli.output import check_output, output_descriptor, write_header_out
from lukshdrfs.cli.overwriting import Overwritten
from lukshdrfs.errors import HeaderError, InUse, UsageError
from lukshdrfs.headers import create_header_file, parse_from, read_header
from lukshdrfs.luks.backup import backup_of
from lukshdrfs.luks.convert import to_luks1, to_luks2
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.luks2.layout import KEYSLOTS_SIZE, METADATA_SIZE
from lukshdrfs.luks.luks2.shared import choose_payload, exported, shared_payloads
from lukshdrfs.luks.model import Header
from lukshdrfs.payload import FilePayload
from lukshdrfs.volume import LockedVolume, fill_with_random

DETACHED_SIZE = METADATA_SIZE * 2 + KEYSLOTS_SIZE
"""Bytes of a LUKS2 header, as `create` makes it."""


def run_convert(arguments: argparse.Namespace) -> int:
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


def run_export(arguments: argparse.Namespace) -> int:
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


def run_attach(arguments: argparse.Namespace) -> int:
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
