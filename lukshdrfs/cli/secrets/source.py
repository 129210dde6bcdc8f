"""
Where a secret comes from, and exactly which bytes of it count.

The rules are cryptsetup's (its cryptsetup(8), "NOTES ON PASSPHRASE PROCESSING"): a key file counts to the last
byte, newlines included; a typed or piped passphrase is a line without its newline. Nothing is decoded: a passphrase
is bytes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lukshdrfs.cli.secrets.asking import agent_is_there, ask_agent
from lukshdrfs.cli.secrets.keyring import read_key
from lukshdrfs.cli.secrets.reading import read_file, read_line
from lukshdrfs.cli.terminal.prompt import asking, has_terminal
from lukshdrfs.errors import UsageError, WrongKey
from lukshdrfs.secret import SecretBytes

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SecretSource:
    """What the command line says about where the secret is."""

    key_file: str | None = None
    keyfile_offset: int = 0
    keyfile_size: int | None = None
    passphrase_file: str | None = None
    volume_key_file: str | None = None
    key_description: str | None = None
    tries: int = 3
    stdin_brings: str = ""
    """What standard input brings instead of a passphrase (`the header`), so that it cannot be asked there."""

    @property
    def named(self) -> bool:
        """Whether the command line names a place; else somebody is asked, or standard input is read."""
        names = (self.key_file, self.passphrase_file, self.volume_key_file, self.key_description)
        return any(name is not None for name in names)

    @property
    def interactive(self) -> bool:
        """Whether somebody is asked, and may try again."""
        if self.named:
            return False
        return has_terminal() if self.stdin_brings else sys.stdin.isatty() or agent_is_there()

    def try_until(self, prompt: str, work: Callable[[SecretBytes], T]) -> T:
        """
        Do something with the secret, and again with another one if it is wrong and somebody may try again.

        Raises what `read` and `work` raise, WrongKey after the last try.
        """
        tries = max(1, self.tries) if self.interactive else 1
        while True:
            tries -= 1
            try:
                with self.read(prompt) as secret:
                    return work(secret)
            except WrongKey as error:
                if tries == 0:
                    raise
                log.warning("%s", error)

    def read(self, prompt: str) -> SecretBytes:
        """
        Return the secret.

        Raises DeviceError if a file cannot be read, UsageError if it has the wrong size, or nothing came where somebody
        was to type or send something.
        """
        if self.volume_key_file is not None:
            return read_file(self.volume_key_file, 0, None, "volume key file")
        if self.key_file is not None:
            return read_file(self.key_file, self.keyfile_offset, self.keyfile_size, "key file")
        if self.passphrase_file is not None:
            return read_line(self.passphrase_file, "passphrase file")
        if self.key_description is not None:
            return read_key(self.key_description)
        return self._ask(prompt) if self.interactive else self._read_standard_input()

    def _ask(self, prompt: str) -> SecretBytes:
        if self.stdin_brings or sys.stdin.isatty():
            with asking(prompt, standard_input=not self.stdin_brings) as terminal:
                return read_line(f"fd:{terminal}", "the terminal", described="the terminal")
        return ask_agent(prompt)

    def _read_standard_input(self) -> SecretBytes:
        if self.stdin_brings:
            raise UsageError(
                f"standard input is {self.stdin_brings}, and there is no terminal to ask for a passphrase on; "
                "name the key with --key-file or --passphrase-file"
            )
        return read_line("-", "standard input")


def new_secret(source: SecretSource, prompt: str) -> SecretBytes:
    """
    Return a new secret; one that is typed is asked for twice, and again if the two differ or are empty.

    Raises UsageError if that is so each time, or a secret that is not typed is empty.
    """
    if not source.interactive:
        secret = source.read(prompt)
        if not len(secret):
            raise UsageError("an empty passphrase protects nothing; is the key file or standard input empty?")
        return secret
    for left in range(max(1, source.tries) - 1, -1, -1):
        first = source.read(prompt)
        with source.read("Again: ") as second:
            problem = "" if first == second else "the two passphrases differ"
        if not problem and len(first):
            return first
        first.wipe()
        problem = problem or "an empty passphrase protects nothing"
        if left:
            log.warning("%s; please type another one twice", problem)
    raise UsageError(f"{problem}; nothing was changed")
