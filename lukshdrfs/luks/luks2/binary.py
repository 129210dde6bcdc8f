"""
The LUKS2 binary header, its two copies, which of them is valid, and how one is written.

Source: LUKS2 specification, section 2.1 (binary header); cryptsetup, lib/luks2/luks2_disk_metadata.c
(`hdr_read_disk`, `LUKS2_disk_hdr_read`) for the choice between the copies.
"""

from __future__ import annotations

import logging
import os
import struct
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.hazmat.primitives.hashes import Hash

from lukshdrfs.errors import HeaderError, NoHeader, UnsupportedFeature
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.luks2 import strict_json as sj
from lukshdrfs.luks.luks2.layout import BINARY_SIZE, METADATA_SIZES
from lukshdrfs.luks.luks2.parse import parse_digests, parse_keyslots, parse_segments, parse_tokens
from lukshdrfs.luks.luks2.requirements import requirements
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.luks2.validity import check_metadata
from lukshdrfs.luks.model import Header, field_text

log = logging.getLogger(__name__)

PRIMARY_MAGIC = b"LUKS\xba\xbe"
SECONDARY_MAGIC = b"SKUL\xba\xbe"

BINARY = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
"""magic, version, hdr_size, seqid, label, csum_alg, salt, uuid, subsystem, hdr_offset, padding, csum."""

CHECKSUM_OFFSET = BINARY.size - 64


CHECKSUM = "sha256"
"""What new headers' checksums are made with (LUKS2 specification, section 2.1, `csum_alg`)."""


class _Fields(NamedTuple):
    magic: bytes
    version: int
    hdr_size: int
    seqid: int
    label: bytes
    csum_alg: bytes
    salt: bytes
    uuid: bytes
    subsystem: bytes
    hdr_offset: int
    padding: bytes
    csum: bytes


@dataclass(frozen=True, slots=True)
class BinaryHeader:
    """One copy's binary header; its checksum fits the copy."""

    hdr_size: int
    """Bytes of the copy: binary header and JSON area."""
    seqid: int
    label: str
    uuid: str
    subsystem: str
    json_area: bytes = b""
    secondary: bool = False
    csum_alg: str = CHECKSUM

    @property
    def json_size(self) -> int:
        """Bytes of the JSON area."""
        return self.hdr_size - BINARY_SIZE

    def written(self, metadata: Json, *, secondary: bool) -> bytes:
        """
        Return this header with other metadata as it stands on the storage, `hdr_size` bytes, with a new salt.

        Raises HeaderError if the metadata do not fit.
        """
        text = sj.dump(metadata)
        if len(text) >= self.json_size:  # a NUL comes after it
            raise HeaderError(f"the header has no room: its metadata need {len(text) + 1} of {self.json_size} bytes")
        json_area = text.ljust(self.json_size, b"\0")
        fields = BINARY.pack(
            SECONDARY_MAGIC if secondary else PRIMARY_MAGIC,
            2,
            self.hdr_size,
            self.seqid,
            _field(self.label),
            _field(self.csum_alg),
            os.urandom(64),
            _field(self.uuid),
            _field(self.subsystem),
            self.hdr_size if secondary else 0,
            b"",
            b"",
        )
        copy = bytearray(fields.ljust(BINARY_SIZE, b"\0") + json_area)
        checksum = _checksum(copy, self.csum_alg)
        copy[CHECKSUM_OFFSET : CHECKSUM_OFFSET + len(checksum)] = checksum
        return bytes(copy)


@dataclass(frozen=True, slots=True)
class MetadataCopy:
    """One valid copy."""

    binary: BinaryHeader
    metadata: Json

    @property
    def keyslots_size(self) -> int:
        """Bytes set aside for the keyslot areas."""
        return sj.get_strtoull(self.metadata["config"], "keyslots_size", "config")

    @property
    def extent(self) -> int:
        """Bytes of the whole header: both copies and the keyslot areas."""
        return 2 * self.binary.hdr_size + self.keyslots_size


def parse_binary(data: bytes, offset: int, *, secondary: bool) -> BinaryHeader:
    """
    Return the binary header of the copy at byte `offset`, after verifying its checksum.

    Raises HeaderError if there is none, or it is damaged.
    """
    which = "secondary" if secondary else "primary"
    if len(data) < offset + BINARY_SIZE:
        raise HeaderError(f"the {which} LUKS2 header is cut off")
    found = _Fields(*BINARY.unpack_from(data, offset))
    hdr_size, csum, csum_alg = found.hdr_size, found.csum, field_text(found.csum_alg)
    if found.magic != (SECONDARY_MAGIC if secondary else PRIMARY_MAGIC):
        raise HeaderError(f"there is no {which} LUKS2 header at byte {offset}")
    if found.version != 2:
        raise HeaderError(f"the {which} LUKS2 header has version {found.version}, expected 2")
    if found.hdr_offset != offset:
        raise HeaderError(f"the {which} LUKS2 header says it is at byte {found.hdr_offset}, it is at {offset}")
    if not METADATA_SIZES[0] <= hdr_size <= METADATA_SIZES[-1] or (secondary and hdr_size != offset):
        raise HeaderError(f"the {which} LUKS2 header has an illegal size of {hdr_size} bytes")
    if len(data) < offset + hdr_size:
        raise HeaderError(f"the {which} LUKS2 header is cut off")
    copy = bytearray(data[offset : offset + hdr_size])
    copy[CHECKSUM_OFFSET : CHECKSUM_OFFSET + len(csum)] = bytes(len(csum))
    _check_checksum(copy, csum_alg, csum, which)
    return BinaryHeader(
        hdr_size=hdr_size,
        seqid=found.seqid,
        label=field_text(found.label),
        uuid=field_text(found.uuid),
        subsystem=field_text(found.subsystem),
        json_area=bytes(copy[BINARY_SIZE:]),
        secondary=secondary,
        csum_alg=csum_alg,
    )


def _field(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _checksum(copy: bytearray, name: str) -> bytes:
    """Return the checksum of a copy, whose own field for it is all zeros."""
    algorithm = find_hash(name).algorithm
    if algorithm is None:
        raise UnsupportedFeature(f"hash {name!r} is not supported for checksums")
    digest = Hash(algorithm)
    digest.update(bytes(copy))
    return digest.finalize()


def _check_checksum(copy: bytearray, name: str, csum: bytes, which: str) -> None:
    try:
        found = _checksum(copy, name)
    except UnsupportedFeature as error:
        raise UnsupportedFeature(f"the {which} LUKS2 header's checksum: {error}") from None
    if found != csum[: len(found)]:
        raise HeaderError(f"the {which} LUKS2 header's checksum is wrong")


def with_new_checksum(data: bytes, offset: int) -> bytes | None:
    """
    Return the copy at byte `offset` with its magic, its place, its checksum and what follows the JSON put right.

    None if it is beyond recognition: version or size make no sense. Only for headers that are damaged anyway.
    """
    if len(data) < offset + BINARY_SIZE:
        return None
    found = _Fields(*BINARY.unpack_from(data, offset))
    hdr_size = found.hdr_size
    if found.version != 2 or hdr_size not in METADATA_SIZES or offset not in (0, hdr_size):
        return None
    text, nul, _ = data[offset + BINARY_SIZE : offset + hdr_size].partition(b"\0")
    mended = found._replace(
        magic=SECONDARY_MAGIC if offset else PRIMARY_MAGIC,
        csum_alg=_field(CHECKSUM),
        hdr_offset=offset,
        padding=b"",
        csum=b"",
    )
    copy = bytearray(
        BINARY.pack(*mended).ljust(BINARY_SIZE, b"\0") + (text if nul else b"").ljust(hdr_size - BINARY_SIZE, b"\0")
    )
    checksum = _checksum(copy, CHECKSUM)
    copy[CHECKSUM_OFFSET : CHECKSUM_OFFSET + len(checksum)] = checksum
    return bytes(copy)


def _parse_copy(binary: BinaryHeader) -> MetadataCopy:
    metadata = sj.load(binary.json_area)
    check_metadata(metadata, len(binary.json_area))
    return MetadataCopy(binary, metadata)


@dataclass(frozen=True, slots=True)
class Copies:
    """What became of reading both copies; None for one that is not valid."""

    primary: MetadataCopy | None
    secondary: MetadataCopy | None
    problems: tuple[str, ...]
    """Of those that are not valid."""
    unsupported: bool = False
    """Whether the primary's is that something is not implemented here, and not that it is damaged."""

    @property
    def chosen(self) -> MetadataCopy | None:
        """The one that counts: the higher seqid, the primary if they are equal."""
        valid = [copy for copy in (self.primary, self.secondary) if copy]
        return max(valid, key=lambda copy: copy.binary.seqid, default=None)


def choose_copy(data: bytes) -> tuple[MetadataCopy, tuple[str, ...]]:
    """
    Return the valid copy of the metadata and what is wrong with the other one, if anything is.

    Raises HeaderError if neither is valid; the message is about the primary.
    """
    copies = read_copies(data)
    chosen = copies.chosen
    if chosen is None:
        kind = UnsupportedFeature if copies.unsupported else HeaderError
        raise kind(f"no valid LUKS2 header: {copies.problems[0]}; {copies.problems[1]}")
    if copies.primary and copies.secondary and copies.primary.binary.seqid != copies.secondary.binary.seqid:
        older = "primary" if chosen.binary.secondary else "secondary"
        return chosen, (f"the {older} LUKS2 header is older than the other copy",)
    return chosen, tuple(f"{problem}; using the other copy" for problem in copies.problems)


def read_copies(data: bytes) -> Copies:
    """
    Read both copies of the metadata.

    The secondary is at the size that the primary names; if the primary's binary header is damaged, it is
    searched for at each legal size.

    Raises HeaderError if there is nothing of a header.
    """
    if not _has_magic(data):
        raise NoHeader("there is no LUKS header in it")
    primary: MetadataCopy | None = None
    secondary: MetadataCopy | None = None
    problems = []
    unsupported = False
    offsets = METADATA_SIZES
    try:
        binary = parse_binary(data, 0, secondary=False)
        offsets = (binary.hdr_size,)
        primary = _parse_copy(binary)
    except HeaderError as error:
        problems.append(str(error))
        unsupported = isinstance(error, UnsupportedFeature)
    try:
        secondary = _parse_copy(_find_secondary(data, offsets))
    except HeaderError as error:
        problems.append(str(error))
    return Copies(primary, secondary, tuple(problems), unsupported)


def _has_magic(data: bytes) -> bool:
    return data.startswith(PRIMARY_MAGIC) or any(data.startswith(SECONDARY_MAGIC, at) for at in METADATA_SIZES)


def _find_secondary(data: bytes, offsets: tuple[int, ...]) -> BinaryHeader:
    for offset in offsets[:-1]:
        try:
            return parse_binary(data, offset, secondary=True)
        except HeaderError as error:
            log.debug("%s", error)
    return parse_binary(data, offsets[-1], secondary=True)


def parse_luks2(data: bytes, size: int) -> Header:
    """
    Parse a LUKS2 header from its first bytes; `size` is that of the file or device it is from.

    Raises HeaderError if it is not valid, or does not fit `size`.
    """
    copy, warnings = choose_copy(data)
    if copy.extent > size:
        raise HeaderError(f"the LUKS2 header is cut off: it needs {copy.extent} bytes, there are {size}")
    metadata = copy.metadata
    config = metadata["config"]
    return Header(
        version=2,
        uuid=copy.binary.uuid,
        label=copy.binary.label,
        subsystem=copy.binary.subsystem,
        seqid=copy.binary.seqid,
        metadata_size=copy.binary.hdr_size,
        keyslots_size=copy.keyslots_size,
        keyslots=parse_keyslots(metadata),
        digests=parse_digests(metadata),
        segments=parse_segments(metadata),
        tokens=parse_tokens(metadata),
        flags=sj.get_strings(config, "flags", "config", optional=True),
        requirements=requirements(metadata),
        area=data[: copy.extent],
        warnings=warnings,
    )
