"""The on-disk formats as values: parse, check, unlock, make. Parsing takes bytes and opens nothing."""

from lukshdrfs.luks.forced import made_sense_of
from lukshdrfs.luks.header import MAX_EXTENT, PREFIX_SIZE, header_extent, is_luks1, parse_header
from lukshdrfs.luks.kdf import NO_LIMITS, KdfLimits
from lukshdrfs.luks.model import Digest, Header, Kdf, Keyslot, Segment, Token
from lukshdrfs.luks.unlock import UnlockedKey, accept_volume_key, unlock

__all__ = [
    "MAX_EXTENT",
    "NO_LIMITS",
    "PREFIX_SIZE",
    "Digest",
    "Header",
    "Kdf",
    "KdfLimits",
    "Keyslot",
    "Segment",
    "Token",
    "UnlockedKey",
    "accept_volume_key",
    "header_extent",
    "is_luks1",
    "made_sense_of",
    "parse_header",
    "unlock",
]
