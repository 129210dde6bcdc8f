"""`lukshdrfs key`: the keyslots of a header."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from lukshdrfs.cli.arguments import (
    Parser,
    Subparsers,
    add_command,
    add_header,
    add_kdf,
    add_new_secrets,
    add_secrets,
    add_subcommands,
    kdf_wish,
    key_bytes,
    new_secret_source,
)
from lukshdrfs.cli.commands.key.consequences import warn_of_orphans, warn_of_overwriting
from lukshdrfs.cli.commands.key.shared import add_to_all, change_all, remove_all
from lukshdrfs.cli.one_header import authorised, editable_header, header_to_edit, readable_header, unlocked
from lukshdrfs.cli.quantities import number
from lukshdrfs.cli.secrets.source import new_secret
from lukshdrfs.cli.terminal.description import PRIORITIES, describe_keyslots
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.keyslots import (
    add_keyslot,
    change_keyslot,
    check_unchanged,
    new_keyslot,
    remove_keyslot,
    set_priority,
)
from lukshdrfs.luks.luks2.shared import shared_payloads
from lukshdrfs.luks.model import Header

_PRIORITY_HELP = f"when it is tried: {', '.join(PRIORITIES)} (luks2)"


_COSTS = ("hash", "pbkdf", "pbkdf_memory", "pbkdf_parallel", "pbkdf_force_iterations", "keyslot_cipher")
"""Options that ask for other key material."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command and its subcommands."""
    commands = add_subcommands(subparsers, "key", "the keyslots of a header")
    _add_parser_of_add(commands)
    _add_parser_of_change(commands)
    _add_parser_of_remove(commands)

    parser = add_command(commands, "list", "list the keyslots that are in use")
    _add_target(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_list)

    parser = add_command(commands, "test", "tell which keyslot a secret opens; exit status 2 if none")
    _add_target(parser)
    add_secrets(parser)
    parser.set_defaults(run=_test)


def _add_target(parser: Parser) -> None:
    parser.add_argument("payload", nargs="?", metavar="PAYLOAD", help="or the header itself")
    add_header(parser)


def _add_parser_of_add(commands: Subparsers) -> None:
    parser = add_command(commands, "add", "add a keyslot for another secret")
    _add_target(parser)
    add_secrets(parser)
    add_new_secrets(parser)
    parser.add_argument(
        "--new-key-slot", type=number, metavar="N", help="the new keyslot's number (the first free one)"
    )
    parser.add_argument("--priority", metavar="P", help=_PRIORITY_HELP)
    add_kdf(parser, "of the AF splitter and pbkdf2 (sha256; luks1: the header's)")
    parser.set_defaults(run=_add)


def _add_parser_of_change(commands: Subparsers) -> None:
    parser = add_command(commands, "change", "give a keyslot another secret, cost or priority")
    _add_target(parser)
    add_secrets(parser)
    add_new_secrets(parser)
    parser.add_argument(
        "--priority", metavar="P", help=f"{_PRIORITY_HELP}; with --key-slot alone, nothing else changes"
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="where there is no room for the old and the new key material: overwrite the old one. "
        "A power failure in that moment loses the keyslot",
    )
    add_kdf(parser, "of the AF splitter and pbkdf2 (sha256; luks1: the header's)")
    parser.set_defaults(run=_change)


def _add_parser_of_remove(commands: Subparsers) -> None:
    parser = add_command(commands, "remove", "destroy a keyslot: the one named, or that of a secret")
    _add_target(parser)
    add_secrets(parser)
    parser.add_argument("--force", action="store_true", help="remove the last one, too: then no passphrase opens it")
    parser.set_defaults(run=_remove)


def _add(arguments: argparse.Namespace) -> int:
    priority = _priority(arguments.priority)
    source = new_secret_source(arguments)
    header = header_to_edit(arguments)
    if shared_payloads(header):
        if arguments.new_key_slot is not None:
            raise UsageError("--new-key-slot: each payload of the header gets a keyslot; leave it out")
        added = add_to_all(arguments, header, lambda size: _new_keyslot(arguments, header, size, priority), source)
        _say(f"keyslots {added} added")
        return 0
    with unlocked(header, arguments) as key:
        slot = _new_keyslot(arguments, header, len(key.volume_key), priority)
        with new_secret(source, "New passphrase: ") as secret, editable_header(arguments, warn=False) as file:
            check_unchanged(file.header, header, key.digest)
            chosen, edit = add_keyslot(
                file.header, key.volume_key, secret, slot, digest=key.digest, number=arguments.new_key_slot
            )
            file.apply(edit)
    _say(f"keyslot {chosen} added")
    return 0


def _change(arguments: argparse.Namespace) -> int:
    priority = _priority(arguments.priority)
    if priority is not None and arguments.key_slot is not None and not _names_a_secret(arguments, *_COSTS):
        with editable_header(arguments) as file:
            file.apply(set_priority(file.header, arguments.key_slot, PRIORITIES[arguments.priority]))
        return 0
    if arguments.volume_key_file is not None and arguments.key_slot is None:
        raise UsageError("the volume key is no keyslot's alone; name the keyslot to change with --key-slot")
    source = new_secret_source(arguments)
    header = header_to_edit(arguments)
    if shared_payloads(header):
        numbers = change_all(arguments, header, lambda size: _new_keyslot(arguments, header, size, priority), source)
        _say(f"keyslots {numbers} changed")
        return 0
    with unlocked(header, arguments) as key:
        changed = arguments.key_slot if key.keyslot is None else key.keyslot
        slot = _new_keyslot(arguments, header, len(key.volume_key), priority)
        prompt = f"New passphrase for keyslot {changed}: "
        with new_secret(source, prompt) as secret, editable_header(arguments, warn=False) as file:
            check_unchanged(file.header, header, key.digest, changed)
            edit = change_keyslot(file.header, changed, key.volume_key, secret, slot, in_place=arguments.in_place)
            warn_of_overwriting(edit, file.header, changed)
            file.apply(edit)
    _say(f"keyslot {changed} changed")
    return 0


def _names_a_secret(arguments: argparse.Namespace, *more: str) -> bool:
    names = (
        "key_file",
        "passphrase_file",
        "volume_key_file",
        "key_description",
        "new_key_file",
        "new_passphrase_file",
    )
    return any(getattr(arguments, name, None) is not None for name in (*names, *more))


def _remove(arguments: argparse.Namespace) -> int:
    if arguments.volume_key_file is not None and arguments.key_slot is None:
        raise UsageError("the volume key is no keyslot's alone; name the keyslot to remove with --key-slot")
    header, removed, digest = header_to_edit(arguments), arguments.key_slot, None
    if shared_payloads(header):
        gone = remove_all(arguments, header, removed, authorise=_names_a_secret(arguments))
        _say(f"keyslots {gone} removed")
        return 0
    if removed is None:
        with unlocked(header, arguments) as key:
            removed, digest = key.keyslot, key.digest
    elif _names_a_secret(arguments):
        digest = authorised(header, arguments, removed)
    with editable_header(arguments, warn=False) as file:
        if digest is not None:
            check_unchanged(file.header, header, digest, removed)
        edit = remove_keyslot(file.header, removed)
        left = {slot.id for slot in file.header.keyslots if _opens(file.header, slot.id)} - {removed}
        if not left and not arguments.force:
            raise UsageError(f"keyslot {removed} is the last that opens the volume; --force removes it all the same")
        before = file.header
        file.apply(edit)
        warn_of_orphans(before, file.header)
    _say(f"keyslot {removed} removed")
    return 0


def _opens(header: Header, keyslot: int) -> bool:
    """Whether a keyslot holds the key of any segment, as far as can be told without a passphrase."""
    slot, digest = header.keyslot(keyslot), header.digest_of_keyslot(keyslot)
    return bool(slot and not slot.problem and not slot.unsupported and digest and digest.segments)


def _list(arguments: argparse.Namespace) -> int:
    document = describe_keyslots(readable_header(arguments))
    text = json.dumps(document, indent=2) if arguments.json else "\n".join(_row(slot) for slot in document)
    sys.stdout.write(f"{text}\n" if text else "")
    return 0


def _row(slot: dict[str, Any]) -> str:
    kdf = slot["kdf"] or {"type": "-"}
    cost = f"{kdf['hash']}, {kdf['iterations']} iterations" if kdf["type"] == "pbkdf2" else ""
    if kdf["type"].startswith("argon2"):
        cost = f"{kdf['time']} passes over {kdf['memory_kib']} KiB by {kdf['cpus']} threads"
    remarks = [
        *([] if slot["priority"] == "normal" else [slot["priority"]]),
        *([] if slot["bound"] else ["unbound: holds another key than the volume's"]),
        *(slot[what] for what in ("problem", "unsupported") if slot[what]),
    ]
    return f"{slot['id']:>2}  {kdf['type']:<8}  {', '.join([cost, *remarks]) if cost else ', '.join(remarks)}".rstrip()


def _test(arguments: argparse.Namespace) -> int:
    with unlocked(readable_header(arguments), arguments) as key:
        where = "the volume key fits" if key.keyslot is None else f"keyslot {key.keyslot}"
    sys.stdout.write(f"{where}\n")
    return 0


def _priority(name: str | None) -> int | None:
    if name is not None and name not in PRIORITIES:
        raise UsageError(f"--priority {name}: expected {', '.join(PRIORITIES)}")
    return None if name is None else PRIORITIES[name]


def _new_keyslot(arguments: argparse.Namespace, header: Header, key_size: int, priority: int | None) -> NewKeyslot:
    """Return the keyslot that the command line asks for."""
    usual_hash = header.digests[0].hash if header.version == 1 else "sha256"
    return new_keyslot(
        header,
        key_size,
        kdf_wish(arguments, header.version, usual_hash),
        encryption=arguments.keyslot_cipher,
        area_key_size=key_bytes(arguments.keyslot_key_size, "--keyslot-key-size"),
        priority=priority,
    )


def _say(text: str) -> None:
    """Tell a person what was done; scripts have the exit status."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
