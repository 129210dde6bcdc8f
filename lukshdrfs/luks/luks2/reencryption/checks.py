"""What the metadata of a reencryption have to be, held against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lukshdrfs.errors import HeaderError, UnsupportedFeature
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.model import Segment
from lukshdrfs.sectors import SECTOR, round_down

if TYPE_CHECKING:
    from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState

_LARGEST_BLOCK = 1 << 20
"""Bytes that one checksum may be of: cryptsetup takes 4096 at most, and a block is in memory as a whole."""


def contradiction(what: str) -> HeaderError:
    """Return the error for metadata that contradict themselves."""
    return HeaderError(f"the header's reencryption is not to be trusted: {what}; nothing of it is used")


def check_mode(state: ReencryptionState) -> None:
    """Raise HeaderError unless the volume before and after is what mode and data shift make of it."""
    kinds = {"encrypt": ("linear", "crypt"), "decrypt": ("crypt", "linear"), "reencrypt": ("crypt", "crypt")}
    if (state.previous.type, state.final.type) != kinds[state.mode]:
        raise contradiction(f"its mode is {state.mode}, of {state.previous.type} data that become {state.final.type}")
    for segment, digest in ((state.previous, state.old_digest), (state.final, state.new_digest)):
        if (segment.type == "crypt") != (digest is not None):
            raise contradiction("a key's digest is not bound to the side that it is of")
    shift = state.protection.shift
    apart = {
        "encrypt": state.final.offset - state.previous.offset,
        "decrypt": state.previous.offset - state.final.offset,
    }
    if apart.get(state.mode, state.final.offset - state.previous.offset) != shift:
        raise contradiction("the data lie elsewhere afterwards than its data shift says")
    if shift and state.mode == "reencrypt":
        raise UnsupportedFeature("a reencryption with data shift is not supported; 'cryptsetup reencrypt' finishes it")
    if shift == 0 and (state.moved is not None or state.previous.size != state.final.size):
        raise contradiction("the volume's size changes, and no data are shifted")
    if (state.version == 3) != (state.mode == "decrypt" and bool(shift) and state.moved is not None):
        raise contradiction(f"its requirement is of version {state.version}, which is for another mode")
    if state.mode == "reencrypt" and state.keeps_key and same(state.previous, state.final):
        raise contradiction("both sides are the same")
    _check_moved(state)


def _check_moved(state: ReencryptionState) -> None:
    """Raise HeaderError if what a data shift has put elsewhere is not what one step takes."""
    if state.moved is not None and not same(state.moved, state.previous):
        raise contradiction("what it has moved is of another kind than the data before it")
    if state.moved is not None and not 0 < (state.moved.size or 0) <= state.protection.shift:
        raise contradiction("what it has moved is more than its data shift")


def check_protection(state: ReencryptionState) -> None:
    """Raise HeaderError for a protection that cannot protect, UnsupportedFeature for one that is not implemented."""
    protection = state.protection
    if protection.type not in ("checksum", "journal", "datashift", "datashift-checksum", "datashift-journal", "none"):
        raise UnsupportedFeature(f"the reencryption's protection {protection.type!r} is not supported")
    if protection.in_place == "checksum":
        find_hash(protection.hash)
        block = protection.block_size
        if block % state.sector_size:
            raise contradiction(f"its checksums are of {block} bytes, which are not whole sectors")
        if block > _LARGEST_BLOCK:
            raise UnsupportedFeature(f"the reencryption's checksums are of {block} bytes each: that is too much")
    if protection.shift % state.sector_size:
        raise contradiction(f"its data shift of {protection.shift} bytes is not whole sectors")


def same(left: Segment, right: Segment) -> bool:
    """Whether two segments hold their data in the same form."""
    return (left.type, left.encryption, left.sector_size) == (right.type, right.encryption, right.sector_size)


def check_hot(state: ReencryptionState) -> None:
    """Raise HeaderError if a step was at more than what its protection is of."""
    hot = state.hot
    if hot is None:
        return
    if hot.size is None:
        raise contradiction("the segment that its step is at has no size")
    protection = state.protection
    shifted = bool(protection.shift) and not (hot.start == 0 and protection.in_place)
    if protection.type == "none" or (not shifted and not protection.in_place):
        raise contradiction("its step has no protection")
    reach = protection.shift if shifted else protection.reach
    if hot.size > round_down(reach, SECTOR):
        raise contradiction(f"its step is at {hot.size} bytes, its protection is of {reach}")
