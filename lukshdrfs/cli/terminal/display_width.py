"""
How many columns of a terminal a text takes, and a shorter one that fits.

East Asian wide characters take two, combining and invisible ones none. Source: Unicode Standard Annex 11, as wcwidth(3)
of glibc has it: characters of ambiguous width take one.
"""

from __future__ import annotations

import unicodedata

_ELLIPSIS = "..."
_WITHOUT_WIDTH = ("Mn", "Me", "Cf")
_HANGUL_WITHOUT_WIDTH = range(0x1160, 0x1200)
"""Vowels and final consonants, which are shown in the square of the first consonant."""


def width(text: str) -> int:
    """Return the columns that a text takes, in one line."""
    return sum(map(_width_of, text))


def _width_of(char: str) -> int:
    if unicodedata.category(char) in _WITHOUT_WIDTH or ord(char) in _HANGUL_WITHOUT_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fitted(text: str, columns: int) -> str:
    """Return a text that takes at most so many columns: of a longer one, both ends, for a file is told by its name."""
    if width(text) <= columns:
        return text
    if columns <= len(_ELLIPSIS):
        return _start(text, columns)
    room = columns - len(_ELLIPSIS)
    return f"{_start(text, room // 2)}{_ELLIPSIS}{_end(text, room - room // 2)}"


def _start(text: str, columns: int) -> str:
    taken = 0
    for at, char in enumerate(text):
        taken += _width_of(char)
        if taken > columns:
            return text[:at]
    return text


def _end(text: str, columns: int) -> str:
    taken = 0
    for at in range(len(text) - 1, -1, -1):
        taken += _width_of(text[at])
        if taken > columns:
            return text[at + 1 :].lstrip("".join(char for char in text[at + 1 :] if not _width_of(char)))
    return text
