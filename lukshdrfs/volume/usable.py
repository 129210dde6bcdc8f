"""Whether a volume can be used: what its header asks for, and where its header lies."""

from __future__ import annotations

import logging

from lukshdrfs.cipher import CipherSpec, check_sector_size
from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState
from lukshdrfs.luks.luks2.requirements import is_reencrypt_candidate
from lukshdrfs.luks.model import Header

log = logging.getLogger(__name__)


def overlaps_header(header: Header) -> bool:
    """Whether a segment would begin in the header, were that on the payload itself."""
    return any(segment.offset < len(header.area) for segment in header.segments)


def check_usable(header: Header, conversion: ReencryptionState | None = None) -> None:
    """
    Raise UnsupportedFeature if the header asks for anything that is not implemented.

    A program that meets a requirement it does not know must not touch the data (LUKS2 specification, section 3.4
    "Config object"); a conversion in progress is such a requirement too, and what state it is in has to be known.
    """
    needed = [name for name in header.requirements if conversion is None or not is_reencrypt_candidate(name)]
    if needed:
        names = ", ".join(needed)
        raise UnsupportedFeature(
            f"the header requires {names}, which is not supported: its data and keyslots are not touched; 'info', "
            "'header verify' and 'header backup' work"
        )
    if conversion is not None:
        _check_both_sides(conversion)
        return
    for segment in header.segments:
        where = f"segment {segment.id}"
        if segment.type not in ("crypt", "linear"):
            raise UnsupportedFeature(f"{where} has the type {segment.type!r}, which is not supported")
        if segment.flags:
            raise UnsupportedFeature(f"{where} has the flags {', '.join(segment.flags)}, which are not supported")
        if segment.integrity:
            raise UnsupportedFeature(f"{where} has integrity protection ({segment.integrity}), not supported")
        if segment.type == "crypt":
            CipherSpec.parse(segment.encryption)
            check_sector_size(segment.sector_size)
        else:
            log.warning("%s is linear: what is in it is stored unencrypted", where)
    if all(segment.type == "linear" for segment in header.segments):
        # any passphrase would do, and whoever swapped the header would read what is written
        raise UnsupportedFeature(
            "no segment of the header is encrypted; the payload is plaintext, or the header is forged"
        )
    first = header.segments[0]
    if len(header.segments) == 1 and first.iv_tweak:
        raise UnsupportedFeature(
            f"segment 0 is alone and has iv_tweak {first.iv_tweak}: by the specification, its first sector's IV is "
            f"{first.iv_tweak}, to cryptsetup 2.6 it is 0; the wrong reading would destroy data, so neither is taken"
        )


def _check_both_sides(conversion: ReencryptionState) -> None:
    for segment in (conversion.previous, conversion.final):
        if segment.integrity:
            raise UnsupportedFeature(f"the volume has integrity protection ({segment.integrity}), not supported")
        if segment.type == "crypt":
            CipherSpec.parse(segment.encryption)
            check_sector_size(segment.sector_size)
    if conversion.mode != "reencrypt":
        log.warning("the volume is half-way through a conversion: a part of it is stored unencrypted")
