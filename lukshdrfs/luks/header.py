"""Reading a header of either version. Takes bytes, opens nothing."""

from __future__ import annotations

from lukshdrfs.errors import HeaderError, UnsupportedFeature
from lukshdrfs.luks.luks1.phdr import extent_luks1, parse_luks1
from lukshdrfs.luks.luks2.binary import PRIMARY_MAGIC, choose_copy, parse_luks2
from lukshdrfs.luks.luks2.layout import MAX_KEYSLOTS_SIZE, METADATA_SIZES
from lukshdrfs.luks.model import Header

PREFIX_SIZE = 2 * METADATA_SIZES[-1]
"""Bytes that hold the metadata of any header: two copies of the largest size."""

MAX_EXTENT = PREFIX_SIZE + MAX_KEYSLOTS_SIZE
"""Bytes of the largest legal header."""


_NEWEST = 2


def _version(data: bytes) -> int:
    """
    Return 1 or 2. Without magic and version at the start it is 2, whose secondary header is then searched for.

    So does cryptsetup (lib/setup.c, `_crypt_load_luks`). Raises UnsupportedFeature for other versions.
    """
    version = int.from_bytes(data[6:8], "big") if data.startswith(PRIMARY_MAGIC) else 0
    if version > _NEWEST:
        raise UnsupportedFeature(f"LUKS version {version} is not supported (known: 1, 2)")
    return version or _NEWEST


def is_luks1(data: bytes) -> bool:
    """Whether `data` start like a LUKS1 header. Raises UnsupportedFeature for a version that is not known."""
    return _version(data) == 1


def header_extent(prefix: bytes) -> int:
    """
    Return how many bytes the header takes that starts with `prefix` (the first PREFIX_SIZE bytes, or all).

    Raises HeaderError if there is no valid header, or it claims to be larger than headers can be.
    """
    extent = extent_luks1(prefix) if _version(prefix) == 1 else choose_copy(prefix)[0].extent
    if extent > MAX_EXTENT:
        raise HeaderError(f"the header claims {extent} bytes, no header has more than {MAX_EXTENT}")
    return extent


def parse_header(data: bytes, size: int | None = None, *, unused_areas_missing: bool = False) -> Header:
    """
    Parse the header that `data` starts with.

    `size` is that of the file or device it is from, in bytes; all of it is in `data` if it is left out.
    With `unused_areas_missing`, a LUKS1 header may lack keyslot areas that are not in use, which cryptsetup refuses.
    Raises HeaderError if there is no valid header.
    """
    size = len(data) if size is None else size
    return (
        parse_luks1(data, size, unused_areas_missing=unused_areas_missing)
        if _version(data) == 1
        else parse_luks2(data, size)
    )
