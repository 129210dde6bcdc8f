"""A new passphrase is typed twice, shown never, and counts byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles, cryptsetup
from support.files import digest
from support.mounts import LUKSHDRFS, Argument, lukshdrfs
from support.terminal import Terminal

pytestmark = [pytest.mark.needs("cryptsetup", "setsid")]

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
TYPED, OTHER = b"typed passphrase", b"another passphrase"

PASSPHRASES = {
    "composed": "caf\u00e9 \u00c5\u1e69".encode(),
    "decomposed": "cafe\u0301 A\u030as\u0323\u0307".encode(),
    "latin-1": b"caf\xe9 \xc5\xff",
    "blanks": b"  two blanks, a tab\\t and a backslash  ",
    "one byte": b"\xa7",
    **{f"{size} bytes": (b"0123456789abcdef" * 32)[:size] for size in (63, 64, 65, 511, 512)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for what `create` makes."""
    made = tmp_path / "new"
    made.mkdir()
    return made


def creating(folder: Path, *options: Argument) -> list[Argument]:
    return [
        LUKSHDRFS, "create", *CHEAP, "--luks2-keyslots-size", "1M", "--size", "64K", *options,
        "--header", folder / "header.img", folder / "payload.img",
    ]  # fmt: skip


def editing(command: str, files: LuksFiles, *options: Argument) -> list[Argument]:
    return [LUKSHDRFS, "key", command, *CHEAP, *options, "--header", files.header]


def typing(command: list[Argument], *lines: bytes, code: int = 0) -> bytes:
    """Run a command, type a line at each prompt, and return what the terminal has shown."""
    with Terminal(*command) as terminal:
        for line in lines:
            terminal.answer(line)
        assert terminal.wait() == code, terminal.shown
        assert terminal.echoes
        assert b"Traceback" not in terminal.shown
        for line in filter(None, lines):
            assert line not in terminal.shown
        return terminal.shown


def opens(header: Path, secret: bytes) -> bool:
    """Tell whether cryptsetup opens a header with exactly these bytes."""
    key_file = header.with_name("key-for-cryptsetup")
    key_file.write_bytes(secret)
    try:
        cryptsetup("luksDump", "--dump-volume-key", "--key-file", key_file, header)
    except AssertionError:
        return False
    finally:
        key_file.unlink()
    return True


@pytest.mark.parametrize("name", PASSPHRASES)
def test_typed_bytes_are_the_passphrase(name: str, folder: Path) -> None:
    """`create` takes what is typed as it is, whatever it is in; cryptsetup opens the header with the same bytes."""
    secret = PASSPHRASES[name]
    shown = typing(creating(folder), secret, secret)
    assert b"New passphrase" in shown
    assert b"Again" in shown
    assert opens(folder / "header.img", secret)


def test_too_long_passphrase(folder: Path) -> None:
    """A passphrase of 513 bytes is refused, not cut: nothing is made."""
    shown = typing(creating(folder), b"0123456789abcdef" * 32 + b"x", code=1)
    assert b"more than 512 bytes" in shown
    assert list(folder.iterdir()) == []


def test_composed_is_not_decomposed(folder: Path) -> None:
    """Two ways to write the same letter are two passphrases."""
    secret = PASSPHRASES["composed"]
    typing(creating(folder), secret, secret)
    assert not opens(folder / "header.img", PASSPHRASES["decomposed"])


def test_mistyped_again(folder: Path) -> None:
    """If the two differ, both are asked for again."""
    shown = typing(creating(folder), TYPED, OTHER, OTHER, TYPED, TYPED, TYPED)
    assert shown.count(b"differ") == 2
    assert opens(folder / "header.img", TYPED)


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_mistyped_too_often(tries: int, folder: Path) -> None:
    """After `--tries` times nothing is made."""
    shown = typing(creating(folder, "--tries", str(tries)), *[TYPED, OTHER] * tries, code=1)
    assert b"nothing was changed" in shown
    assert list(folder.iterdir()) == []


def test_empty_passphrase(folder: Path) -> None:
    """An empty passphrase is asked for again, as one that was mistyped."""
    shown = typing(creating(folder), b"", b"", TYPED, OTHER, TYPED, TYPED)
    assert shown.count(b"an empty passphrase protects nothing") == 1
    assert shown.count(b"differ") == 1
    assert opens(folder / "header.img", TYPED)


@pytest.mark.parametrize("tries", [1, 3])
def test_empty_passphrase_too_often(tries: int, folder: Path) -> None:
    """After `--tries` times, three unless told, nothing is made."""
    shown = typing(creating(folder, *([] if tries == 3 else ["--tries", "1"])), *[b"", b""] * tries, code=1)
    assert b"an empty passphrase protects nothing; nothing was changed" in shown
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("prompt", [0, 1])
def test_interrupted_create(prompt: int, folder: Path) -> None:
    """Control-C at either prompt leaves nothing, and the terminal echoes again."""
    with Terminal(*creating(folder)) as terminal:
        for _ in range(prompt):
            terminal.answer(TYPED)
        terminal.interrupt()
        assert terminal.wait() == 130
        assert b"interrupted" in terminal.shown
        assert b"Traceback" not in terminal.shown
        assert terminal.echoes
    assert list(folder.iterdir()) == []


@pytest.fixture
def typed(volume: LuksFiles) -> LuksFiles:
    """Return a volume that a typed passphrase opens, too."""
    passphrase = volume.key_file.with_name("typed")
    passphrase.write_bytes(TYPED)
    cryptsetup("luksAddKey", *CHEAP, "--key-file", volume.key_file, volume.header, passphrase)
    return volume


@pytest.mark.parametrize("command", ["add", "change"])
def test_new_key(command: str, typed: LuksFiles) -> None:
    """`key add` and `key change` ask for the old passphrase once and for the new one twice."""
    shown = typing(editing(command, typed), TYPED, OTHER, OTHER)
    assert shown.count(b"New passphrase") == 1
    assert shown.count(b"Again") == 1
    assert opens(typed.header, OTHER)
    assert opens(typed.header, TYPED) is (command == "add")


@pytest.mark.parametrize("command", ["add", "change"])
def test_mistyped_new_key(command: str, typed: LuksFiles) -> None:
    """If the new passphrases differ each time, the header stays as it was."""
    before = digest(typed.header)
    shown = typing(editing(command, typed, "--tries", "2"), TYPED, OTHER, TYPED, OTHER, b"a third", code=1)
    assert b"nothing was changed" in shown
    assert digest(typed.header) == before


def test_mistyped_old_key(typed: LuksFiles) -> None:
    """The old passphrase may be mistyped, too."""
    typing(editing("add", typed), OTHER, TYPED, OTHER, OTHER)
    assert opens(typed.header, OTHER)


@pytest.mark.parametrize("prompt", [0, 1, 2])
@pytest.mark.parametrize("command", ["add", "change"])
def test_interrupted_edit(command: str, prompt: int, typed: LuksFiles) -> None:
    """Control-C at any prompt of an edit leaves the header as it was, and the terminal echoes again."""
    before = digest(typed.header)
    with Terminal(*editing(command, typed)) as terminal:
        for line in [TYPED, OTHER][:prompt]:
            terminal.answer(line)
        terminal.interrupt()
        assert terminal.wait() == 130
        assert b"Traceback" not in terminal.shown
        assert terminal.echoes
    assert digest(typed.header) == before


# --- how far it has come ----------------------------------------------------------------------------------------

BAR = b"filling "


def test_progress_on_a_terminal(folder: Path, volume: LuksFiles) -> None:
    """While a payload is filled, a terminal shows how far that has come, and at the end the line is gone."""
    with Terminal(*creating(folder, "--key-file", volume.key_file)) as terminal:
        assert terminal.wait() == 0
    assert BAR in terminal.shown
    assert b"100%" in terminal.shown
    assert terminal.shown.endswith(b"\r\x1b[K")


def test_no_progress_elsewhere(folder: Path, volume: LuksFiles) -> None:
    """Where standard error is no terminal, nothing is shown."""
    done = lukshdrfs(*creating(folder, "--key-file", volume.key_file)[1:])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_progress_in_a_log(folder: Path, volume: LuksFiles) -> None:
    """Somebody who sits at a terminal and sends standard error to a file has no bars in it."""
    log = folder.with_name("log")
    command = creating(folder, "--key-file", volume.key_file)
    with Terminal("sh", "-c", 'exec 2>"$1"; shift; exec "$@"', "sh", log, *command) as terminal:
        assert terminal.wait() == 0
    assert log.read_bytes() == b""
    assert terminal.shown == b""
