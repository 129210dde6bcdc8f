"""The program's entry points."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from itertools import takewhile
from typing import NoReturn

from lukshdrfs._version import VERSION
from lukshdrfs.cli.arguments import Parser, Subparsers, closest, no_command
from lukshdrfs.cli.commands import benchmark, check, info, install_mount_helper, lock, resize, status, unmount
from lukshdrfs.cli.commands.convert import command as convert
from lukshdrfs.cli.commands.create import command as create
from lukshdrfs.cli.commands.header import command as header
from lukshdrfs.cli.commands.key import command as key
from lukshdrfs.cli.commands.mount import command as mount
from lukshdrfs.cli.missing_header import naming_the_way
from lukshdrfs.cli.outcome import EndedBySignal, exit_status
from lukshdrfs.cli.terminal import logs
from lukshdrfs.limits import raise_limits
from lukshdrfs.luks.keys.free_memory import return_freed_memory
from lukshdrfs.payload import is_network
from lukshdrfs.secret import harden_process

COMMANDS = {
    "mount": mount,
    "unmount": unmount,
    "umount": unmount,
    "lock": lock,
    "resize": resize,
    "status": status,
    "create": create,
    "encrypt": convert,
    "decrypt": convert,
    "reencrypt": convert,
    "check": check,
    "info": info,
    "key": key,
    "header": header,
    "benchmark": benchmark,
    "install-mount-helper": install_mount_helper,
}

_OPTIONS_WITH_VALUE = ("-o",)
_COMMON = ("-v", "-vv", "-q", "--verbose", "--quiet")


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="lukshdrfs",
        description="Unlock a LUKS volume whose header lives apart from its data, without root, as one plaintext file.",
        epilog="Short form, as mount(8) calls it: lukshdrfs PAYLOAD MOUNTPOINT [-o OPT,...] [-f]",
    )
    parser.add_argument("-V", "--version", action="version", version=f"lukshdrfs {VERSION}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in dict.fromkeys(COMMANDS.values()):
        command.add_parser(subparsers)
    for command_parser in _commands_below(subparsers):
        command_parser.add_argument("-v", "--verbose", action="count", default=0, help="log more; twice for everything")
        command_parser.add_argument("-q", "--quiet", action="store_true", help="log errors only")
    return parser


def _commands_below(subparsers: Subparsers) -> Iterator[Parser]:
    """Yield the parsers of all commands that have no commands of their own."""
    for parser in dict.fromkeys(subparsers.choices.values()):
        below = parser.subcommands
        if below is None:
            yield parser
        else:
            yield from _commands_below(below)


def _expand_short_form(words: list[str]) -> list[str]:
    """
    Turn `PAYLOAD MOUNTPOINT [-o …] [-f]` into the `mount` command that it stands for, and `help` into what it asks for.

    Raises UsageError for what is neither this nor a command.
    """
    leading = list(takewhile(lambda word: word in _COMMON, words))
    if leading and len(words) > len(leading) and words[len(leading)] in COMMANDS:
        return [words[len(leading)], *leading, *words[len(leading) + 1 :]]
    if words[:1] == ["help"]:
        return [*(_expand_short_form(words[1:]) if words[1:] else []), "--help"]
    named = _without_options(words)
    if not named or words[0] in COMMANDS:
        return words
    if words[len(leading)] == named[0] and not _looks_like_payload(named):
        raise no_command(named[0], COMMANDS, "lukshdrfs")
    return ["mount", *words]


def _without_options(words: list[str]) -> list[str]:
    named, skip = [], False
    for word in words:
        if skip or word.startswith("-"):
            skip = not skip and word in _OPTIONS_WITH_VALUE
        else:
            named.append(word)
    return named


def _looks_like_payload(named: list[str]) -> bool:
    """Whether the first of these words is rather a payload than a command that is mistyped."""
    word = named[0]
    if is_network(word) or "/" in word or os.path.lexists(word):
        return True
    return len(named) > 1 and "." in word and not closest(word, COMMANDS)


def main(words: list[str] | None = None) -> int:
    """Run the program; return its exit status. `words` are the arguments without the program's name."""
    _open_standard_streams()
    harden_process()
    return_freed_memory()
    raise_limits()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, _interrupt)
    return run(sys.argv[1:] if words is None else words)


def run(words: list[str]) -> int:
    """Run a command in this process as it is; return its exit status. `words` are as for `main`."""
    logs.to_terminal(0)
    return exit_status(lambda: _run(_expand_short_form(words)))


def _interrupt(number: int, _frame: object) -> NoReturn:
    """Let SIGTERM undo what was begun, as Ctrl-C does."""
    raise EndedBySignal(number)


def _open_standard_streams() -> None:
    """
    Put /dev/null where a standard stream is closed.

    Otherwise the next file that is opened would get its number, and what is printed would go into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a locale has no letters for is shown as numbers
            stream.reconfigure(errors="backslashreplace")


def _run(words: list[str]) -> int:
    arguments = build_parser().parse_args(words)
    logs.to_terminal(-1 if arguments.quiet else arguments.verbose)
    with naming_the_way(arguments):
        return int(arguments.run(arguments))
