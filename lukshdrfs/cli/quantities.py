"""
Numbers, sizes, times and owners as people write them, on the command line and in fstab alike.

Sizes are those of dd(1), truncate(1) and qemu-img(1), which cryptsetup(8) knows as well: K, M, G, … and KiB, MiB, … are
powers of 1024, KB, MB, … are powers of 1000. Times are those of systemd.time(7), as far as an hour has a fixed length.
"""

from __future__ import annotations

import argparse
import grp
import pwd
import re
from collections.abc import Callable
from fractions import Fraction

_LONGEST_NUMBER = 20
_LARGEST_SIZE = (1 << 63) - 1  # off_t
_LONGEST_S = 1 << 40
_NO_IDENTIFIER = (1 << 32) - 1  # (uid_t) -1 means none
_SHOWN = 40
_KIB = 1024

_PREFIXES = ("k", "m", "g", "t", "p", "e")
_BYTES: dict[str, int] = {
    unit: base**power
    for power, prefix in enumerate(_PREFIXES, start=1)
    for unit, base in ((prefix, 1024), (f"{prefix}i", 1024), (f"{prefix}ib", 1024), (f"{prefix}b", 1000))
}
_SECONDS: dict[str, Fraction] = {
    unit: length
    for length, units in (
        (Fraction(1, 1000), ("ms", "msec")),
        (Fraction(1), ("s", "sec", "second", "seconds")),
        (Fraction(60), ("m", "min", "minute", "minutes")),
        (Fraction(3600), ("h", "hr", "hour", "hours")),
        (Fraction(86400), ("d", "day", "days")),
    )
    for unit in units
}
_DECIMAL = r"\d{1,20}(?:\.\d{1,20})?"


def number(text: str) -> int:
    """Return a decimal number that is not negative."""
    if not text.isascii() or not text.isdecimal() or len(text) > _LONGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{text[:_SHOWN]!r} is not a number")
    return int(text)


def size(text: str) -> int:
    """Return bytes from a number alone, or with a unit: `64K`, `64KiB`, `1.5G`, `512B` (bytes), `64kB` (64000)."""
    return _size(text, 1)


def kibibytes(text: str) -> int:
    """Return KiB from a number alone, or a size with a unit."""
    found = _size(text, _KIB)
    if found % _KIB:
        raise argparse.ArgumentTypeError(f"{text[:_SHOWN]!r} is not a whole number of KiB")
    return found // _KIB


def _size(text: str, alone: int) -> int:
    """Return bytes. `alone` are those of a number without a unit."""
    match = re.fullmatch(rf"({_DECIMAL})([A-Za-z]*)", text, re.ASCII)
    unit = match[2].lower() if match else ""
    if match and match[2] == "b":
        raise argparse.ArgumentTypeError(
            f"{text[:_SHOWN]!r} has two meanings, blocks of 512 bytes and bytes; write {match[1]}B for bytes"
        )
    if match and unit == "s":
        raise argparse.ArgumentTypeError(
            f"{text[:_SHOWN]!r} counts sectors, which are of several sizes; expected bytes, or K, M, G, T"
        )
    units = {"": alone, "b": 1, **_BYTES}
    if match is None or unit not in units:
        raise argparse.ArgumentTypeError(
            f"{text[:_SHOWN]!r} is not a size; expected a number and K, M, G, T (or KiB, …; KB, … are powers of 1000)"
        )
    found = Fraction(match[1]) * units[unit]
    if found.denominator != 1:
        raise argparse.ArgumentTypeError(f"{text[:_SHOWN]!r} is not a whole number of bytes")
    if found > _LARGEST_SIZE:
        raise argparse.ArgumentTypeError(f"{text[:_SHOWN]!r} is more than any file or device has")
    return int(found)


def seconds(text: str) -> float:
    """Return a time in seconds, more than 0: a number alone, or with units: `90s`, `1h30m`, `2min`, `500ms`."""
    return float(_time(text, Fraction(1)))


def milliseconds(text: str) -> int:
    """Return a time in whole milliseconds, more than 0: a number alone, or as `seconds` with units."""
    found = _time(text, _SECONDS["ms"]) * 1000
    if found.denominator != 1:
        raise argparse.ArgumentTypeError(f"{text[:_SHOWN]!r} is not a whole number of milliseconds")
    return int(found)


def _time(text: str, alone: Fraction) -> Fraction:
    """Return seconds. `alone` are those of a number without a unit."""
    if re.fullmatch(_DECIMAL, text, re.ASCII):
        found = Fraction(text) * alone
    else:
        parts = re.findall(rf"({_DECIMAL})\s*([a-z]+)\s*", text, re.ASCII)
        spelt = re.fullmatch(rf"(?:{_DECIMAL}\s*[a-z]+\s*)+", text, re.ASCII)
        if not spelt or any(unit not in _SECONDS for _, unit in parts):
            raise argparse.ArgumentTypeError(
                f"{text[:_SHOWN]!r} is not a time; expected a number and ms, s, m (or min), h or d"
            )
        found = sum((Fraction(count) * _SECONDS[unit] for count, unit in parts), Fraction(0))
    if not 0 < found <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text[:_SHOWN]!r}: expected a time that is more than 0, and will pass")
    return found


def user(text: str) -> int:
    """Return a user's number, by the number itself or by name."""
    return _identifier(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group(text: str) -> int:
    """Return a group's number, by the number itself or by name."""
    return _identifier(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def _identifier(text: str, what: str, look_up: Callable[[str], int]) -> int:
    if text.isascii() and text.isdecimal():
        found = number(text)
        if found >= _NO_IDENTIFIER:
            raise argparse.ArgumentTypeError(f"{text[:_SHOWN]!r} is not a {what}'s number")
        return found
    try:
        return look_up(text)
    except (KeyError, ValueError):  # ValueError: a NUL in it
        raise argparse.ArgumentTypeError(f"there is no {what} {text[:_SHOWN]!r} here") from None
