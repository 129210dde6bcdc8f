"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import difflib
import re
import uuid
from collections.abc import Iterable
from typing import Any, NoReturn, TypeAlias

from lukshdrfs.cli.quantities import kibibytes, milliseconds, number, size
from lukshdrfs.cli.secrets.source import SecretSource
from lukshdrfs.errors import UsageError
from lukshdrfs.headers import HeaderPin, source_descriptor
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.keys.kdf import NO_LIMITS, KdfLimits
from lukshdrfs.luks.keys.kdf_cost import KdfWish
from lukshdrfs.payload import PayloadName

_ALIKE = 0.7
"""How much of two words is the same, as difflib counts, if one was meant by the other."""


class Parser(argparse.ArgumentParser):
    """Ends with a UsageError: argparse's own exit status 2 would mean a wrong passphrase."""

    def __init__(self, **options: Any) -> None:
        """Take argparse's options; abbreviated ones are not recognised, so that new ones can be added."""
        super().__init__(**{"allow_abbrev": False, **options})
        self.subcommands: Subparsers | None = None
        """The commands of a command that has some."""
        self.intermixed = False
        """Whether options may stand before an argument that can be left out; by itself, argparse forgets that one."""
        self._parsing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Do what argparse does, but where the command is known that has to refuse what is unknown."""
        if self._parsing:  # argparse goes over intermixed arguments twice
            return super().parse_known_args(args, namespace)
        self._parsing = True
        try:
            parse = self.parse_known_intermixed_args if self.intermixed else super().parse_known_args
            found, unknown = parse(args, namespace)
        finally:
            self._parsing = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant_by(unknown)}")
        return found, unknown

    def _meant_by(self, unknown: list[str]) -> str:
        """Return which option may have been meant by the first one that is unknown."""
        word = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        return f"; {closest(word, known)}".removesuffix("; ").removesuffix(";") if word else ""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line in one line."""
        if self.subcommands is not None and (wrong := re.search("invalid choice: '(.*?)' \\(", message)):
            raise no_command(wrong[1], self.subcommands.choices, self.prog)
        raise UsageError(f"{message}; see '{self.prog} --help'")


def no_command(word: str, commands: Iterable[str], program: str) -> UsageError:
    """Return what to say of a command that does not exist."""
    return UsageError(f"no command '{word}'; {closest(word, commands)}see '{program} --help'")


def closest(word: str, words: Iterable[str]) -> str:
    """Return `did you mean '...'?; ` with the word that is most like another one, or nothing if none is."""
    bare = {choice.rstrip("=").lstrip("-"): choice for choice in words}
    found = difflib.get_close_matches(word.rstrip("=").lstrip("-").lower(), bare, n=1, cutoff=_ALIKE)
    return f"did you mean '{bare[found[0]]}'?; " if found else ""


Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - argparse has no public name for it


def add_subcommands(subparsers: Subparsers, name: str, help_: str) -> Subparsers:
    """Add a command that has commands of its own, and return where they go."""
    parser = subparsers.add_parser(name, help=help_, description=help_)
    parser.subcommands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    return parser.subcommands


def add_command(subparsers: Subparsers, name: str, summary: str) -> Parser:
    """Add a command that its summary describes well enough."""
    return subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")


def add_header(parser: Parser) -> None:
    """Add the options that say which header is meant."""
    parser.add_argument(
        "--header",
        action="append",
        metavar="SRC",
        help="detached header: a path, fd:N or - (standard input); repeatable, the first that opens wins",
    )
    parser.add_argument("--header-sha256", metavar="HEX", help="refuse any header file but this")
    parser.add_argument("--header-uuid", metavar="UUID", help="refuse any volume but this")


def add_backing_chain(parser: Parser) -> None:
    """Add the option that allows an image to have backing files."""
    parser.add_argument(
        "--backing-chain", action="store_true", help="open the backing files that a qcow2 image names, for reading"
    )


def add_secrets(parser: Parser) -> None:
    """Add the options that say where the secret is."""
    parser.add_argument("-d", "--key-file", metavar="SRC", help="all of a file's bytes are the key; path, fd:N, -")
    parser.add_argument("--keyfile-offset", type=size, default=0, metavar="BYTES", help="skip these")
    parser.add_argument("-l", "--keyfile-size", type=size, metavar="BYTES", help="use only these many")
    parser.add_argument("--passphrase-file", metavar="SRC", help="the first line, without its newline")
    parser.add_argument("--volume-key-file", metavar="SRC", help="the volume key itself; no keyslot is used")
    parser.add_argument("--key-description", metavar="NAME", help="a key of this description in the kernel's keyring")
    parser.add_argument("-S", "--key-slot", type=number, metavar="N", help="try only this keyslot")
    parser.add_argument("--no-kdf-limit", action="store_true", help="derive keys whatever cost the header asks for")
    parser.add_argument("-T", "--tries", type=number, default=3, metavar="N", help="times to ask (3)")


def add_new_secrets(parser: Parser) -> None:
    """Add the options that say where the new secret is."""
    parser.add_argument("--new-key-file", metavar="SRC", help="all of a file's bytes are the new key; path, fd:N, -")
    parser.add_argument("--new-keyfile-offset", type=size, default=0, metavar="BYTES", help="skip these")
    parser.add_argument("--new-keyfile-size", type=size, metavar="BYTES", help="use only these many")
    parser.add_argument("--new-passphrase-file", metavar="SRC", help="the first line is the new passphrase")


def add_kdf(parser: Parser, hash_help: str) -> None:
    """Add the options that say how much work a new keyslot takes."""
    parser.add_argument("--hash", metavar="HASH", help=hash_help)
    parser.add_argument("--pbkdf", metavar="KDF", help="argon2id, argon2i or pbkdf2 (argon2id; luks1: pbkdf2)")
    parser.add_argument(
        "--pbkdf-memory", type=kibibytes, metavar="KIB", help="of argon2; at most half of the memory by itself"
    )
    parser.add_argument("--pbkdf-parallel", type=number, metavar="N", help="threads of argon2, at most 4")
    parser.add_argument("--pbkdf-force-iterations", type=number, metavar="N", help="passes or iterations; no measuring")
    parser.add_argument(
        "-i", "--iter-time", type=milliseconds, default=2000, metavar="MS", help="time to unlock (2000)"
    )
    parser.add_argument("--keyslot-cipher", metavar="SPEC", help="of the keyslot's area (the data's; luks2)")
    parser.add_argument("--keyslot-key-size", type=number, metavar="BITS", help="for it (the volume key's)")


def kdf_wish(arguments: argparse.Namespace, version: int, usual_hash: str) -> KdfWish:
    """
    Return the work that is wished for in a header of LUKS version 1 or 2.

    Raises UnsupportedFeature for a hash that is not known; one that is gets the name that most programs know.
    """
    return KdfWish(
        arguments.pbkdf or ("pbkdf2" if version == 1 else "argon2id"),
        arguments.iter_time,
        arguments.pbkdf_memory,
        arguments.pbkdf_parallel,
        arguments.pbkdf_force_iterations,
        usual_hash if arguments.hash is None else find_hash(arguments.hash).name,
    )


def key_bytes(bits: int | None, option: str) -> int | None:
    """Return the bytes of a key from its bits. Raises UsageError if they are not whole."""
    if bits is None:
        return None
    if bits % 8 or not bits:
        raise UsageError(f"{option} {bits}: expected a multiple of 8 bits")
    return bits // 8


def kdf_limits(arguments: argparse.Namespace) -> KdfLimits | None:
    """Return the most that a header may ask for; None for the usual."""
    return NO_LIMITS if arguments.no_kdf_limit else None


def pin(arguments: argparse.Namespace) -> HeaderPin:
    """Return which header is allowed."""
    sha256, identity = arguments.header_sha256, arguments.header_uuid
    if sha256 is not None and not arguments.header:
        raise UsageError("--header-sha256 is for a detached header; name it with --header")
    if sha256 is not None and not re.fullmatch("[0-9A-Fa-f]{64}", sha256):
        raise UsageError(f"--header-sha256 {sha256[:80]!r}: expected 64 hexadecimal digits")
    if identity is not None and not re.fullmatch("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", identity):
        raise UsageError(f"--header-uuid {identity[:80]!r}: not a UUID")
    return HeaderPin(sha256 or "", identity or "")


def is_standard_input(name: str | None) -> bool:
    """Whether a name of a header or key is one of those of standard input."""
    return name is not None and source_descriptor(name) == 0


def secret_source(arguments: argparse.Namespace) -> SecretSource:
    """Return where the secret is. Raises UsageError if several places are named."""
    named = [arguments.key_file, arguments.passphrase_file, arguments.volume_key_file, arguments.key_description]
    if sum(name is not None for name in named) > 1:
        raise UsageError("give one of --key-file, --passphrase-file, --volume-key-file and --key-description")
    header_on_stdin = any(is_standard_input(name) for name in arguments.header or [])
    if header_on_stdin and any(is_standard_input(name) for name in named[:3]):
        raise UsageError("standard input can be the header or the key, not both")
    return SecretSource(
        key_file=arguments.key_file,
        keyfile_offset=arguments.keyfile_offset,
        keyfile_size=arguments.keyfile_size,
        passphrase_file=arguments.passphrase_file,
        volume_key_file=arguments.volume_key_file,
        key_description=arguments.key_description,
        tries=arguments.tries,
        stdin_brings="the header" if header_on_stdin else "",
    )


def new_secret_source(arguments: argparse.Namespace) -> SecretSource:
    """Return where the new secret is. Raises UsageError if several places are named, or one is that of the old one."""
    named = [name for name in (arguments.new_key_file, arguments.new_passphrase_file) if name is not None]
    if len(named) > 1:
        raise UsageError("give one of --new-key-file and --new-passphrase-file")
    old = [arguments.key_file, arguments.passphrase_file, arguments.volume_key_file]
    if any(map(is_standard_input, named)) and any(map(is_standard_input, old)):
        raise UsageError("standard input can be the old key or the new one, not both")
    all_of_it = any(map(is_standard_input, (arguments.key_file, arguments.volume_key_file)))
    return SecretSource(
        key_file=arguments.new_key_file,
        keyfile_offset=arguments.new_keyfile_offset,
        keyfile_size=arguments.new_keyfile_size,
        passphrase_file=arguments.new_passphrase_file,
        tries=arguments.tries,
        stdin_brings="the old key" if all_of_it else "",
    )


def checked_uuid(text: str) -> str:
    """Return a UUID in its usual form. Raises UsageError for a text that is none."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UsageError(f"--uuid {text}: not a UUID") from None


def payload_name(arguments: argparse.Namespace) -> PayloadName:
    """Return which payload a command line means."""
    return PayloadName(arguments.payload, arguments.payload_format, backing_chain=arguments.backing_chain)
