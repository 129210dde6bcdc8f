"""
Where a secret comes from, and exactly which bytes of it count.

The rules are cryptsetup's (its cryptsetup(8), "NOTES ON PASSPHRASE PROCESSING"): a key file counts to the last
byte, newlines included; a typed or piped passphrase is a line without its newline. Nothing is decoded: a passphrase
is bytes.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lukshdrfs.cli.keyring import read_key
from lukshdrfs.cli.logs import printable
from lukshdrfs.cli.prompt import asking, has_terminal
from lukshdrfs.environment import for_children
from lukshdrfs.errors import DeviceError, UsageError, WrongKey
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import source_descriptor

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_KEY_FILE = 8 * 1024 * 1024
"""Bytes of a key file (cryptsetup's compiled-in maximum)."""

_FIRST_BUFFER = 4096
_SKIP_STEP = 64 * 1024

_ASK_PASSWORD = "systemd-ask-password"  # noqa: S105 - a program
_SYSTEMD_RUNS = Path("/run/systemd/system")
_QUESTIONS = Path("/run/systemd/ask-password")

MAX_PASSPHRASE = 512
"""Bytes of a line that is typed or piped (cryptsetup, `DEFAULT_PASSPHRASE_SIZE_MAX`)."""


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
            return _read_file(self.volume_key_file, 0, None, "volume key file")
        if self.key_file is not None:
            return _read_file(self.key_file, self.keyfile_offset, self.keyfile_size, "key file")
        if self.passphrase_file is not None:
            return _read_line(self.passphrase_file, "passphrase file")
        if self.key_description is not None:
            return read_key(self.key_description)
        return self._ask(prompt) if self.interactive else self._read_standard_input()

    def _ask(self, prompt: str) -> SecretBytes:
        if self.stdin_brings or sys.stdin.isatty():
            with asking(prompt, standard_input=not self.stdin_brings) as terminal:
                return _read_line(f"fd:{terminal}", "the terminal", described="the terminal")
        return _ask_agent(prompt)

    def _read_standard_input(self) -> SecretBytes:
        if self.stdin_brings:
            raise UsageError(
                f"standard input is {self.stdin_brings}, and there is no terminal to ask for a passphrase on; "
                "name the key with --key-file or --passphrase-file"
            )
        return _read_line("-", "standard input")


def _open(name: str, what: str) -> tuple[int, bool]:
    """Return a descriptor and whether it is ours to close."""
    given = source_descriptor(name)
    if given is not None:
        return given, False
    try:
        descriptor = os.open(name, os.O_RDONLY)
    except OSError as error:
        raise DeviceError(f"{what} {name}: {os.strerror(error.errno or 0)}") from None
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DeviceError(f"{what} {name} is a directory")
    return descriptor, True


def _check_something_came(descriptor: int, described: str) -> None:
    """
    Raise UsageError for a source without a single byte, unless it is a file: an empty file is the empty key.

    The rule is cryptsetup's ("Nothing to read on input."): whoever was to send the key has failed.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UsageError(f"{described}: nothing came; name the key with --key-file or --passphrase-file")


def _read_up_to(descriptor: int, buffer: memoryview, what: str) -> int:
    """Read until the buffer is full or the file ends; return how many bytes there were."""
    done = 0
    while done < len(buffer):
        try:
            count = os.readv(descriptor, [buffer[done:]])
        except OSError as error:
            raise DeviceError(f"{what}: {os.strerror(error.errno or 0)}") from None
        if count == 0:
            break
        done += count
    return done


def _read_file(name: str, offset: int, size: int | None, what: str) -> SecretBytes:
    """Return a file's content, or the part of it that is asked for, to the last byte."""
    described = f"{what} {name}"
    if size is not None and not 0 < size <= MAX_KEY_FILE:
        raise UsageError(f"{described}: a size of {size} bytes is not possible, at most {MAX_KEY_FILE} are")
    descriptor, ours = _open(name, what)
    try:
        _skip(descriptor, offset, described)
        buffer, count = _read_limited(descriptor, MAX_KEY_FILE + 1 if size is None else size, described)
        if not count and not offset:
            _check_something_came(descriptor, described)
    finally:
        if ours:
            os.close(descriptor)
    if count > MAX_KEY_FILE:
        buffer.wipe()
        raise UsageError(f"{described} has more than {MAX_KEY_FILE} bytes; name a part of it with --keyfile-size")
    if size is not None and count < size:
        buffer.wipe()
        raise UsageError(f"{described} has not {size} bytes from byte {offset} on")
    return buffer.take(count)


def _read_limited(descriptor: int, limit: int, described: str) -> tuple[SecretBytes, int]:
    """
    Read up to `limit` bytes; return a buffer and how much of it is filled.

    The buffer grows as needed: few users may lock as much memory as the largest key file has.
    """
    buffer = SecretBytes(min(limit, _FIRST_BUFFER))
    count = _read_up_to(descriptor, buffer.view, described)
    while count == len(buffer) < limit:
        with buffer:
            larger = SecretBytes(min(limit, len(buffer) * 2))
            larger.view[:count] = buffer.view
        buffer = larger
        count += _read_up_to(descriptor, buffer.view[count:], described)
    return buffer, count


def _skip(descriptor: int, offset: int, described: str) -> None:
    """Go to an offset, by reading in what is neither a file nor a block device."""
    if offset == 0:
        return
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        _skip_by_reading(descriptor, offset, described)
        return
    try:
        if offset > os.lseek(descriptor, 0, os.SEEK_END):
            raise UsageError(f"{described} ends before byte {offset}")
        os.lseek(descriptor, offset, os.SEEK_SET)
    except OSError as error:
        raise DeviceError(f"{described}: {os.strerror(error.errno or 0)}") from None


def _skip_by_reading(descriptor: int, offset: int, described: str) -> None:
    """Read what comes before an offset, a piece at a time: it may be more than there is memory."""
    with SecretBytes(min(offset, _SKIP_STEP)) as piece:
        left = offset
        while left:
            wanted = min(left, _SKIP_STEP)
            if _read_up_to(descriptor, piece.view[:wanted], described) < wanted:
                raise UsageError(f"{described} ends before byte {offset}")
            left -= wanted


def _read_line(name: str, what: str, described: str = "") -> SecretBytes:
    """Return the first line without its newline. A carriage return before it counts, as for cryptsetup."""
    descriptor, ours = _open(name, what)
    described = described or (what if name == "-" else f"{what} {name}")
    line = SecretBytes(MAX_PASSPHRASE + 1)
    done = 0
    try:
        # byte by byte: what comes after the line is not ours, standard input may hold more
        while done < len(line) and os.readv(descriptor, [line.view[done : done + 1]]):
            if line.view[done] == ord("\n"):
                return line.take(done)
            done += 1
        if not done:
            _check_something_came(descriptor, described)
    except OSError as error:
        raise DeviceError(f"{described}: {os.strerror(error.errno or 0)}") from None
    finally:
        if ours:
            os.close(descriptor)
    if done > MAX_PASSPHRASE:
        line.wipe()
        raise UsageError(f"{described}: the passphrase has more than {MAX_PASSPHRASE} bytes; use --key-file")
    return line.take(done)


def agent_is_there() -> bool:
    """
    Whether a passphrase is to be had from systemd's agents: it runs this machine, and we have nobody to ask ourselves.

    Sources: sd_booted(3); systemd-ask-password(1).
    """
    return (
        _nothing_comes_in()
        and _SYSTEMD_RUNS.exists()
        and shutil.which(_ASK_PASSWORD) is not None
        and os.access(_QUESTIONS, os.W_OK)
    )


def _nothing_comes_in() -> bool:
    """Whether standard input is /dev/null, as a service has it."""
    try:
        return os.path.samestat(os.fstat(0), os.stat(os.devnull))  # noqa: PTH116
    except OSError:
        return False


_NO_ANSWER = f"{_ASK_PASSWORD} got no answer; name the key with --key-file"


def _ask_agent(prompt: str) -> SecretBytes:
    """Ask by systemd-ask-password: whoever answers, at boot, on the desktop or on the wall, we get one line."""
    command = [_ASK_PASSWORD, "--no-tty", "--icon=drive-harddisk", "--id=lukshdrfs", printable(prompt).strip(" :")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=for_children()) as agent:
        assert agent.stdout is not None
        try:
            secret = _read_line(f"fd:{agent.stdout.fileno()}", _ASK_PASSWORD, described=_ASK_PASSWORD)
        except UsageError:
            if agent.wait() != 0:  # nothing came, for nobody answered
                raise DeviceError(_NO_ANSWER) from None
            raise
    if agent.returncode != 0:
        secret.wipe()
        raise DeviceError(_NO_ANSWER)
    return secret


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
