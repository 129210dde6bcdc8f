"""The line that shows how far long work is: it fits the terminal, however wide that is at the moment."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.cli.terminal import progress
from lukshdrfs.cli.terminal.display_width import fitted, width
from lukshdrfs.cli.terminal.progress import Progress, duration, progress_line

NAMES = {
    "short": "reading a",
    "long": "filling /srv/a/very/long/path/" + "x" * 300 + "/payload.img with random bytes",
    "wide": "reading " + "漢字仮名交じり文" * 20,
    "combining": "reading " + "e\u0301a\u0308" * 60,
    "hangul letters": "reading " + "\u1112\u1161\u11ab" * 40,
    "emoji": "reading " + "🔒" * 60,
}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("abc", 3),
        ("漢字", 4),
        ("e\u0301", 1),
        ("ｱ", 1),
        ("\uff21", 2),
        ("\u1112\u1161\u11ab", 2),
        ("a\u200bb", 2),
    ],
)
def test_width(text: str, columns: int) -> None:
    """Wide characters take two columns, combining ones none."""
    assert width(text) == columns


@given(st.text(alphabet=st.sampled_from("ab漢e\u0301ｱ\u1161"), max_size=60), st.integers(0, 40))
def test_fitted_text(text: str, columns: int) -> None:
    """A text that is shortened never takes more than there is, and one that fits stays as it is."""
    found = fitted(text, columns)
    assert width(found) <= columns
    assert found == text or width(text) > columns


def test_a_shortened_name_keeps_its_end() -> None:
    """A file is told by its name, which is at the end of its path."""
    assert fitted("reading /srv/disks/payload.img", 20) == "reading ...yload.img"


@pytest.mark.parametrize("name", NAMES)
def test_the_line_fits(name: str) -> None:
    """At any width, with any name; how far it is, is told as long as there is room for that."""
    for columns in (*range(1, 130), 500):
        line = progress_line(NAMES[name], 0.42, "1234 MiB/s", "12:34 min", columns)
        assert width(line) <= columns
        if columns >= 4:
            assert "42%" in line
        if columns >= 66:
            assert "[" in line
            assert "1234 MiB/s" in line
            assert "12:34 min" in line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99, "99 s"), (100, "1:40 min"), (3599, "59:59 min"), (7500, "2:05 h")]
)
def test_duration(seconds: float, text: str) -> None:
    """Nobody has to divide by 3600."""
    assert duration(seconds) == text


class Screen:
    """A terminal whose width is set, and what was written to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, term: str = "xterm") -> None:
        self.leader, self.terminal = os.openpty()
        self.stream = os.fdopen(self.terminal, "w", encoding="utf-8", newline="")
        monkeypatch.setattr("sys.stderr", self.stream)
        monkeypatch.setattr(progress, "_INTERVAL_S", 0)
        monkeypatch.setenv("TERM", term)

    def close(self) -> None:
        self.stream.close()
        os.close(self.leader)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def drawn(self) -> list[str]:
        """Return what was drawn since, each drawing alone."""
        os.set_blocking(self.leader, False)
        try:
            text = os.read(self.leader, 1 << 16).decode()
        except BlockingIOError:
            return []
        return re.split(r"\r\x1b\[K", text)[1:]


def test_the_width_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that has become narrower or wider meanwhile has a line that fits; an unknown width is 80."""
    screen = Screen(monkeypatch)
    with Progress(NAMES["wide"], 100) as shown:
        for columns in (120, 40, 10, 3, 1, 200, 0):
            screen.resize(columns)
            shown.show(50)
            (line,) = screen.drawn()
            assert width(line) < (columns or 80)
            assert "\n" not in line
    assert screen.drawn() == [""]
    screen.close()


def test_a_terminal_that_cannot_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have a line more for each drawing, so nothing is shown."""
    screen = Screen(monkeypatch, term="dumb")
    with Progress("reading a", 100) as shown:
        shown.show(50)
    assert screen.drawn() == []
    screen.close()
