"""
A LUKS header as values: one model for both versions, in the words of the LUKS2 specification.

LUKS1 is told in the same terms: its eight slots are keyslots with PBKDF2 and a raw area, its key digest is a
digest over all of them, its payload is one dynamic crypt segment with 512-byte sectors.
Offsets and sizes are bytes unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

STRIPES = 4000
"""The only number of AF stripes there is (LUKS1 specification, figure 1; cryptsetup, `LUKS_STRIPES`)."""


class Priority(IntEnum):
    """When a keyslot is tried (LUKS2 specification, keyslot object `priority`)."""

    IGNORE = 0
    """Only when it is named."""
    NORMAL = 1
    PREFER = 2


@dataclass(frozen=True, slots=True)
class Kdf:
    """How a passphrase becomes the key of a keyslot's area."""

    type: str
    """`pbkdf2`, `argon2i` or `argon2id`."""
    salt: bytes
    iterations: int
    """PBKDF2's iterations, or Argon2's passes (`time`)."""
    hash: str = ""
    """PBKDF2 only."""
    memory_kib: int = 0
    """Argon2 only."""
    lanes: int = 0
    """Argon2 only (`cpus`)."""


@dataclass(frozen=True, slots=True)
class AfSplitter:
    """How the volume key is spread over the area."""

    hash: str
    stripes: int


@dataclass(frozen=True, slots=True)
class KeyslotArea:
    """Where the key material lies in the header, and what encrypts it."""

    offset: int
    """From the start of the header."""
    size: int
    encryption: str
    """A cipher specification in dm-crypt's words; its sectors are 512 bytes, their IVs count from 0."""
    key_size: int


@dataclass(frozen=True, slots=True)
class Keyslot:
    """One encrypted copy of a key."""

    id: int
    type: str
    """`luks2` for both versions' own; `reencrypt` and unknown ones hold no key for us."""
    key_size: int
    """Bytes of the key that it holds."""
    area: KeyslotArea
    priority: int = Priority.NORMAL
    kdf: Kdf | None = None
    """None if `type` has none, or if `problem` says why."""
    af: AfSplitter | None = None
    problem: str = ""
    """What is wrong with this keyslot alone, so that it cannot be opened; empty if nothing is."""
    unsupported: str = ""
    """What it asks for that is not implemented, so that it cannot be opened here; empty if nothing."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Tells whether a key is the right one, and binds keyslots to segments."""

    id: int
    type: str
    keyslots: frozenset[int]
    segments: frozenset[int]
    hash: str = ""
    iterations: int = 0
    salt: bytes = b""
    digest: bytes = b""
    problem: str = ""
    """What is wrong with it, so that no key can be verified; empty if nothing is."""
    unsupported: str = ""
    """What it asks for that is not implemented; empty if nothing."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of the payload."""

    id: int
    type: str
    """`crypt` or `linear`; others are kept, and refused when the volume is opened."""
    offset: int
    """On the payload."""
    size: int | None
    """None: dynamic, as far as the payload goes."""
    iv_tweak: int = 0
    """Added to the sector number of every IV; in 512-byte sectors."""
    encryption: str = ""
    sector_size: int = 512
    flags: tuple[str, ...] = ()
    integrity: str = ""
    """Type of authenticated encryption, empty if none."""


@dataclass(frozen=True, slots=True)
class Token:
    """How another program gets at a keyslot's passphrase; only read and listed here."""

    id: int
    type: str
    keyslots: tuple[int, ...]
    content: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed and checked header, with the bytes that its keyslot areas are in."""

    version: int
    uuid: str
    keyslots: tuple[Keyslot, ...]
    digests: tuple[Digest, ...]
    segments: tuple[Segment, ...]
    area: bytes = field(repr=False)
    """The header's bytes from its start to the end of the keyslot areas. All that is used comes from here."""
    label: str = ""
    subsystem: str = ""
    seqid: int = 0
    """LUKS2's epoch: the higher one of the two copies is the newer."""
    metadata_size: int = 0
    """Bytes of one copy of the metadata; 0 for LUKS1."""
    keyslots_size: int = 0
    """Bytes set aside for keyslot areas; 0 for LUKS1."""
    tokens: tuple[Token, ...] = ()
    flags: tuple[str, ...] = ()
    """Persistent activation flags: hints, none of which this program needs."""
    requirements: tuple[str, ...] = ()
    """What a program must implement before it may use the volume."""
    warnings: tuple[str, ...] = ()
    """What was wrong with the header and could be worked around."""

    @property
    def type(self) -> str:
        """`luks1` or `luks2`."""
        return f"luks{self.version}"

    def keyslot(self, keyslot_id: int) -> Keyslot | None:
        """Return the keyslot of that number, if there is one."""
        return next((slot for slot in self.keyslots if slot.id == keyslot_id), None)

    def digest_of_segment(self, segment_id: int) -> Digest | None:
        """Return the digest that is bound to a segment, if there is one."""
        return next((digest for digest in self.digests if segment_id in digest.segments), None)

    def digest_of_keyslot(self, keyslot_id: int) -> Digest | None:
        """Return the digest that is bound to a keyslot, if there is one."""
        return next((digest for digest in self.digests if keyslot_id in digest.keyslots), None)


SALT_SIZE = 32
"""Bytes of a keyslot's or digest's salt (cryptsetup, `LUKS_SALTSIZE`)."""


def field_text(field: bytes) -> str:
    """Return a field's text, in a fixed size whose last byte counts as a NUL, as in cryptsetup (`hdr_from_disk`)."""
    return field[:-1].partition(b"\0")[0].decode("utf-8", errors="surrogateescape")
