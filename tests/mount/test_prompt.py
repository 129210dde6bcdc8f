"""The prompt for a passphrase, whatever happens to the program while it asks."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, LuksFiles, cryptsetup
from support.mounts import LUKSHDRFS, Argument, fusermount, is_mounted, lukshdrfs
from support.processes import daemons
from support.terminal import Terminal
from support.tools import program
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "setsid")

TYPED = b"typed passphrase"


@pytest.fixture
def typed(volume: LuksFiles) -> LuksFiles:
    """Return a volume whose passphrase can be typed."""
    volume.key_file.write_bytes(TYPED)
    volume.header.unlink()
    options: list[str | Path] = [*XTS_512.options, "--key-file", volume.key_file, "--header", volume.header]
    cryptsetup("luksFormat", *options, volume.payload)
    return volume


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mountpoint"
    folder.mkdir()
    yield folder
    if is_mounted(folder):
        fusermount(folder)


def key_test(files: LuksFiles) -> list[Argument]:
    return [LUKSHDRFS, "key", "test", "--header", files.header]


def mount(files: LuksFiles, mountpoint: Path) -> list[Argument]:
    return [LUKSHDRFS, "mount", "--header", files.header, files.payload, mountpoint]


class Shell(Terminal):
    """An interactive shell, which has job control."""

    def __init__(self) -> None:
        super().__init__("env", "PS1=ready ", program("bash"), "--norc", "--noprofile", "--noediting", "-i")
        self.expect(b"ready ")

    def type(self, data: bytes) -> None:
        self.read()
        self._answered = len(self.shown)
        os.write(self._master, data)

    def expect(self, text: bytes) -> None:
        """Wait until something is shown that was not there when something was typed last."""

        def shown() -> bool:
            self.read()
            return text in self.shown[self._answered :]

        wait_until(shown, f"{text!r} is shown")

    def run(self, command: list[Argument]) -> None:
        self.type(b" ".join(b"'%s'" % os.fsencode(word) for word in command) + b"\n")


PROMPT = b"Passphrase for "


@pytest.mark.parametrize(
    ("command", "stop"), [("key test", "typed"), ("key test", "SIGSTOP"), ("mount", "typed"), ("mount", "SIGTSTP")]
)
def test_stopped_and_continued(command: str, stop: str, typed: LuksFiles, mountpoint: Path) -> None:
    """Ctrl-Z gives the shell its terminal with echo; `fg` asks again, without; what is typed then counts."""
    words = key_test(typed) if command == "key test" else mount(typed, mountpoint)
    with Shell() as shell:
        shell.run(words)
        shell.expect(PROMPT)
        shell.prompt()
        shell.type(b"half a passphr\x1a" if stop == "typed" else b"")
        if stop != "typed":
            for pid in daemons(typed.header.parent):
                os.kill(pid, getattr(signal, stop))
        shell.expect(b"Stopped")
        assert shell.echoes
        shell.type(b"bg\n")
        shell.expect(b"ready ")
        wait_until(lambda: set(states(typed.header.parent)) == {"T"}, "it is stopped again, in the background")
        assert shell.echoes
        shell.type(b"fg\n")
        shell.expect(PROMPT)
        shell.prompt()
        shell.type(TYPED + b"\n")
        shell.expect(b"ready ")
        assert shell.echoes
        shell.type(b"echo status $?\n")
        shell.expect(b"status 0")
        assert TYPED not in shell.shown
    assert is_mounted(mountpoint) is (command == "mount")


def test_started_in_the_background(typed: LuksFiles) -> None:
    """It waits until it is in the foreground, and asks then."""
    with Shell() as shell:
        shell.run([*key_test(typed)])
        shell.expect(PROMPT)
        shell.type(b"\x03")
        shell.expect(b"ready ")
        shell.type(b"%s key test --header %s &\n" % (os.fsencode(LUKSHDRFS), os.fsencode(typed.header)))
        wait_until(lambda: "T" in states(typed.header.parent), "it is stopped")
        assert shell.echoes
        shell.type(b"fg\n")
        shell.expect(PROMPT)
        shell.prompt()
        shell.type(TYPED + b"\n")
        shell.expect(b"keyslot 0")


def states(folder: Path) -> str:
    """Return the states of the processes of our program that work in a folder, a letter each."""
    found = ""
    for pid in daemons(folder):
        found += Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return found


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("key test", name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")),
        *(("mount", name) for name in ("SIGINT", "SIGTERM", "SIGQUIT")),
    ],
)
def test_ended_by_a_signal(command: str, name: str, typed: LuksFiles, mountpoint: Path) -> None:
    """The echo is there again, and the exit status is what a shell says of a command that a signal has ended."""
    number = signal.Signals[name]
    words = key_test(typed) if command == "key test" else mount(typed, mountpoint)
    with Terminal("sh", "-c", '"$@"; echo "status $?"; sleep 1', "sh", *words) as terminal:
        terminal.prompt()
        pid = min(daemons(typed.header.parent))  # of a mount, the process that was started
        os.kill(pid, number)
        wait_until(lambda: not daemons(typed.header.parent), "nobody is left who asks")

        def told() -> bool:
            terminal.read()
            return f"status {128 + number}".encode() in terminal.shown

        wait_until(told, "the shell tells the status")
        assert terminal.echoes
        assert b"Traceback" not in terminal.shown
    assert not is_mounted(mountpoint)


def test_mount_that_is_killed(typed: LuksFiles, mountpoint: Path) -> None:
    """Even where the process that was started is killed, nobody is left who asks, and the echo is there again."""
    with Terminal("sh", "-c", '"$@"; sleep 5', "sh", *mount(typed, mountpoint)) as terminal:
        terminal.prompt()
        os.kill(min(daemons(typed.header.parent)), signal.SIGKILL)
        wait_until(lambda: not daemons(typed.header.parent), "nobody is left who asks")
        assert terminal.echoes


@pytest.mark.parametrize("header", ["-", "fd:0"])
def test_header_from_a_pipe_and_a_typed_passphrase(header: str, typed: LuksFiles, mountpoint: Path) -> None:
    """As ssh does: the question goes to the terminal itself, wherever standard input comes from."""
    script = 'cat "$1" | "$2" mount --header "$3" "$4" "$5"'
    words: list[Argument] = [typed.header, LUKSHDRFS, header, typed.payload, mountpoint]
    with Terminal("sh", "-c", script, "sh", *words) as terminal:
        terminal.answer(b"wrong")
        terminal.answer(TYPED)
        assert terminal.wait() == 0, terminal.shown
        assert terminal.echoes
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_header_from_a_pipe_without_a_terminal(typed: LuksFiles) -> None:
    """There is nobody to ask then, and the line says what to do."""
    with typed.header.open("rb") as header:
        done = subprocess.run(
            [LUKSHDRFS, "key", "test", "--header", "-"],
            stdin=header, capture_output=True, start_new_session=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"--key-file" in done.stderr
    assert b"terminal" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_old_key_from_a_pipe_and_a_new_one_that_is_typed(typed: LuksFiles) -> None:
    """A key file is read to its end, so the new passphrase cannot come behind it."""
    script = 'printf %s "$3" | "$1" key add --iter-time 10 --pbkdf pbkdf2 --header "$2" --key-file -'
    with Terminal("sh", "-c", script, "sh", LUKSHDRFS, typed.header, TYPED.decode()) as terminal:
        terminal.answer(b"another")
        terminal.answer(b"another")
        assert terminal.wait() == 0, terminal.shown


def test_prompt_is_seen_where_errors_go_to_a_file(typed: LuksFiles, tmp_path: Path) -> None:
    """The question is for whoever types; in a log it would be seen by nobody."""
    log = tmp_path / "log"
    with Terminal("sh", "-c", 'exec 2>"$1"; shift; exec "$@"', "sh", log, *key_test(typed)) as terminal:
        terminal.answer(TYPED)
        assert terminal.wait() == 0
    assert PROMPT in terminal.shown
    assert log.read_bytes() == b""


@pytest.mark.parametrize("what", ["header", "key file", "passphrase", "passphrase file"])
def test_a_pipe_that_brings_nothing(what: str, typed: LuksFiles) -> None:
    """The program that was to send it has failed: that is what is said."""
    options: dict[str, list[Argument]] = {
        "header": ["--header", "-", "--key-file", typed.key_file],
        "key file": ["--header", typed.header, "--key-file", "-"],
        "passphrase": ["--header", typed.header],
        "passphrase file": ["--header", typed.header, "--passphrase-file", "fd:0"],
    }
    done = lukshdrfs("key", "test", *options[what], stdin=b"")
    assert done.returncode == (4 if what == "header" else 1)
    assert "nothing came" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_typed(typed: LuksFiles) -> None:
    """Ctrl-D at the prompt is no passphrase, and ends it."""
    with Terminal(*key_test(typed)) as terminal:
        terminal.prompt()
        os.write(terminal._master, b"\x04")
        assert terminal.wait() == 1
        assert terminal.echoes
    assert b"nothing came" in terminal.shown
