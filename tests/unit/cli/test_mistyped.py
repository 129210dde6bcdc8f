"""What a person has mistyped: the word that was meant is named, and nothing is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from lukshdrfs.cli.main import build_parser, run


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["unmout", "plain"], "unmount"),
        (["statsu"], "status"),
        (["lok", "--all"], "lock"),
        (["moutn", "payload.img", "plain"], "mount"),
        (["creat", "--header", "h", "payload.img"], "create"),
        (["inof", "payload.img"], "info"),
        (["key", "lst", "payload.img"], "list"),
        (["header", "bakcup", "a", "b"], "backup"),
        (["help", "unmout"], "unmount"),
    ],
)
def test_a_mistyped_command(
    words: list[str], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and one line with the command that was meant, though what follows exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "payload.img").touch()
    assert run(words) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"did you mean '{meant}'?" in error


def test_no_command_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    """A word that is like no command is no command, and the way to them is named."""
    assert run(["frobnicate"]) == 1
    assert "no command 'frobnicate'" in capsys.readouterr().err


@pytest.mark.parametrize("payload", ["payload.img", "./nowhere", "nbd://localhost/x", "missing.img"])
def test_the_short_form(
    payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What looks like a payload is one, whether it is there or not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.img").touch()
    for words in ([payload, "nowhere/mountpoint"], ["--header", "h", payload, "nowhere/mountpoint"]):
        assert run(words) == 4
        assert "command" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["mount", "--heder", "h", "p", "m"], "--header"),
        (["mount", "--key_file=k", "p", "m"], "--key-file"),
        (["lock", "--al"], "--all"),
        (["status", "--jsno"], "--json"),
        (["key", "add", "--new-keyfile", "k", "p"], "--new-key-file"),
    ],
)
def test_a_mistyped_option(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The option that was meant is named, and the command whose help has them all."""
    assert run(words) == 1
    error = capsys.readouterr().err
    assert f"did you mean '{meant}'?" in error
    assert f"lukshdrfs {words[0]}" in error


@pytest.mark.parametrize("words", [["help"], ["help", "mount"], ["help", "key", "add"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`help` is `--help`, of a command or of all."""
    with pytest.raises(SystemExit) as ended:
        run(words)
    assert ended.value.code == 0
    assert f"usage: {' '.join(['lukshdrfs', *words[1:]])} " in capsys.readouterr().out


def test_every_option_is_found_by_itself() -> None:
    """No command refuses what it knows."""
    assert build_parser().parse_args(["lock", "--all"]).all
