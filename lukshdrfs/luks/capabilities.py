"""
What a sound header asks for that is not implemented here, by name.

Such a header is not damaged: it is shown, verified and backed up like any other, and what it asks for is refused only
where it is needed, at the keyslot, the digest or the segment.
"""

from __future__ import annotations

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.model import AfSplitter, Header, Kdf, KeyslotArea, Segment

_KNOWN_SEGMENTS = ("crypt", "linear")


def missing_for_keyslot(kdf: Kdf, af: AfSplitter, area: KeyslotArea) -> str:
    """Return what opening a keyslot takes and is not there; empty if nothing is missing."""
    missing = next(filter(None, map(missing_hash, filter(None, (kdf.hash, af.hash)))), "")
    if missing:
        return missing
    try:
        CipherSpec.parse(area.encryption).check_key_size(area.key_size)
    except UnsupportedFeature as error:
        return str(error)
    return ""


def missing_hash(name: str) -> str:
    """Return why a hash cannot be had; empty if it can."""
    try:
        find_hash(name)
    except UnsupportedFeature:
        return f"hash {name!r} is not supported"
    return ""


def missing_for_segments(header: Header) -> tuple[tuple[int, str], ...]:
    """Return the segments, by number, that cannot be read or written here, and why."""
    found = ((segment.id, _missing_for_segment(segment)) for segment in header.segments)
    return tuple((number, text) for number, text in found if text)


def _missing_for_segment(segment: Segment) -> str:
    if segment.type not in _KNOWN_SEGMENTS:
        return f"its type {segment.type!r} is not supported"
    if segment.integrity:
        return f"its integrity protection {segment.integrity!r} is not supported"
    if segment.type == "crypt":
        try:
            CipherSpec.parse(segment.encryption)
        except UnsupportedFeature as error:
            return str(error)
    return ""
