"""
The JSON of a LUKS2 header as plain values, each checked where it is taken.

What is legal follows json-c and cryptsetup's checks (lib/luks2/luks2_json_metadata.c): 64-bit numbers are
decimal strings, everything is bounded. All that is wrong is a HeaderError that names the field. Of what json-c takes
beyond JSON, comments, single quotes, trailing commas and odd numbers are refused: no program writes them into headers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Self, TypeVar

from lukshdrfs.errors import HeaderError

Json = dict[str, Any]
T = TypeVar("T")

UINT32_MAX = (1 << 32) - 1
UINT64_MAX = (1 << 64) - 1
MAX_DEPTH = 32
"""Levels of values, the outermost one counted (json-c's JSON_TOKENER_DEFAULT_DEPTH)."""

_LONGEST_INTEGER = 100
_SPACE = " \t\n\r"
_HALF_PAIR = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates but those that `surrogateescape` has for bytes that are no UTF-8."""
_KINDS = {dict: "an object", list: "an array", str: "a string", int: "an integer"}


class WrittenFloat(float):
    """A number that is no integer, and how it was written: no field has one, but other programs' members may."""

    def __new__(cls, text: str) -> Self:
        """Keep the text beside the value."""
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


def load(area: bytes) -> Json:
    """
    Parse the JSON area of a header: an object at its very start, then nothing but NULs, at least one.

    Raises HeaderError.
    """
    text_bytes, nul, rest = area.partition(b"\0")
    if not nul:
        raise HeaderError("LUKS2 JSON area has no NUL after the text")
    if rest.strip(b"\0"):
        raise HeaderError("LUKS2 JSON area has bytes other than NUL after the text")
    if not text_bytes.startswith(b"{"):
        raise HeaderError("LUKS2 JSON area does not start with '{'")
    text = text_bytes.decode("utf-8", errors="surrogateescape")  # json-c takes any bytes in strings
    try:
        decoder = json.JSONDecoder(strict=False, parse_int=_integer, parse_float=WrittenFloat)
        value, end = decoder.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"LUKS2 JSON area cannot be parsed: {error}") from None
    if text[end:].strip(_SPACE):
        raise HeaderError("LUKS2 JSON area has bytes after the object")
    _check_depth(value)
    assert isinstance(value, dict)
    return _cut_at_nul(value) if "\\u0000" in text else value


def dump(value: Any) -> bytes:
    """
    Return what `load` has made as JSON text, without spaces, as json-c writes it.

    Half a surrogate pair becomes U+FFFD, which is what json-c takes it for.
    """
    return _HALF_PAIR.sub("\ufffd", _text(value)).encode("utf-8", "surrogateescape")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(key)}:{_text(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return value.text if isinstance(value, WrittenFloat) else json.dumps(value, ensure_ascii=False)


def _cut_at_nul(value: Any) -> Any:
    """Let every string end at its first NUL, as it does for a program in C."""
    if isinstance(value, str):
        return value.partition("\0")[0]
    if isinstance(value, dict):
        return {_cut_at_nul(key): _cut_at_nul(child) for key, child in value.items()}
    return [_cut_at_nul(child) for child in value] if isinstance(value, list) else value


def _integer(digits: str) -> int:
    """Return a JSON integer; one that is far too large for any field stays that, at bounded cost."""
    if len(digits) <= _LONGEST_INTEGER:
        return int(digits)
    return -(UINT64_MAX + 1) if digits.startswith("-") else UINT64_MAX + 1


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise HeaderError(f"LUKS2 JSON area is nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        return iter(value.values())
    return iter(value if isinstance(value, list) else ())


def get(parent: Any, key: str, kind: type[T], where: str) -> T:
    """Return member `key` of an object, which must be there and of that type. `where` names the object."""
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise HeaderError(f"LUKS2 {where}: {key!r} is missing or is not {_KINDS[kind]}")
    return value


def get_text(parent: Any, key: str, where: str) -> str:
    """Return a string member that is not empty."""
    value = get(parent, key, str, where)
    if not value:
        raise HeaderError(f"LUKS2 {where}: {key!r} is empty")
    return value


def get_uint32(parent: Any, key: str, where: str) -> int:
    """Return an integer member from 0 to 2^32-1."""
    value = get(parent, key, int, where)
    if not 0 <= value <= UINT32_MAX:
        raise HeaderError(f"LUKS2 {where}: {key!r} is {value}, expected 0 to {UINT32_MAX}")
    return value


def get_uint64(parent: Any, key: str, where: str) -> int:
    """Return a decimal string member from 0 to 2^64-1."""
    text = get_text(parent, key, where)
    if not is_numbered(text) or len(text) > 4000 or int(text) > UINT64_MAX:
        raise HeaderError(f"LUKS2 {where}: {key!r} is {text[:40]!r}, expected a decimal number below 2^64")
    return int(text)


def get_strtoull(parent: Any, key: str, where: str) -> int:
    """Return a decimal string member as strtoull(3) reads it: leading space and sign are taken, `-1` wraps."""
    text = get_text(parent, key, where)
    match = re.fullmatch(r"[ \t\n\v\f\r]*([+-]?)([0-9]{1,4000})", text)
    if not match or int(match[2]) > UINT64_MAX:
        raise HeaderError(f"LUKS2 {where}: {key!r} is {text[:40]!r}, expected a decimal number below 2^64")
    return int(match[2]) if match[1] != "-" else -int(match[2]) % (1 << 64)


def get_strings(parent: Any, key: str, where: str, *, optional: bool = False) -> tuple[str, ...]:
    """Return an array member of nothing but strings; `()` if it is optional and not there."""
    if optional and isinstance(parent, dict) and key not in parent:
        return ()
    values = get(parent, key, list, where)
    if not all(isinstance(value, str) for value in values):
        raise HeaderError(f"LUKS2 {where}: {key!r} has a member that is not a string")
    return tuple(values)


def is_numbered(text: str) -> bool:
    """Whether a text has nothing but the digits 0 to 9 (an empty one counts, as it does for cryptsetup)."""
    return all(char in "0123456789" for char in text)


def objects(parent: Json, key: str) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each member of a top-level object; every name must be a number."""
    for name, value in get(parent, key, dict, "metadata").items():
        if not is_numbered(name):
            raise HeaderError(f"LUKS2 {key}: {name[:40]!r} is not a number")
        yield name, value
