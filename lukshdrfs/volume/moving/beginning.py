"""
How a conversion begins: the metadata that say what is to be converted, protected how, and with which keys.

A header is written once: with the requirement that keeps programs out which do not know of conversions. So there is no
moment at which it says that data are encrypted which are not.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import DeviceError, HeaderError, UnsupportedFeature, UsageError
from lukshdrfs.luks.edit import Write
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.luks2.binary import choose_copy
from lukshdrfs.luks.luks2.edit import MAX_KEYSLOTS, commit, put_keyslot
from lukshdrfs.luks.luks2.objects import new_digest
from lukshdrfs.luks.luks2.parse import parse_digests
from lukshdrfs.luks.luks2.reencryption.digest import new_metadata_digest
from lukshdrfs.luks.luks2.reencryption.edits import begun, largest_gap, renumbered, with_parts, with_protection
from lukshdrfs.luks.luks2.reencryption.state import Part, Protection, ReencryptionState, Side
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.model import Digest, Header, Segment
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume.half_converted import Keys


@dataclass(frozen=True, slots=True)
class Resilience:
    """How steps are to be protected."""

    type: str = "checksum"
    """Or `journal`."""
    hash: str = "sha256"
    """Of checksums."""

    def protection(self, offset: int, size: int, sector_size: int) -> Protection:
        """
        Return the protection in an area of the header, of a volume whose larger sectors are of `sector_size` bytes.

        Each checksum is of one such sector. Of a larger block, a power cut could leave a part written, if the storage
        writes no more than a sector at once, and nothing would tell what that is. And the last sectors of a volume
        that is no whole blocks would have no checksum. All in bytes. Raises HeaderError if the area is too small.
        """
        if self.type == "journal":
            protection = Protection("journal", offset, size)
        elif self.type == "checksum":
            protection = Protection("checksum", offset, size, find_hash(self.hash).name, sector_size)
        else:
            raise UsageError(f"--resilience {self.type}: expected checksum or journal")
        if protection.reach < max(sector_size, protection.block_size):
            raise HeaderError(f"the header has {size} bytes for a conversion, which is too little; remove a keyslot")
        return protection


@dataclass(frozen=True, slots=True)
class NewSide:
    """What the data are to become."""

    cipher: CipherSpec
    sector_size: int
    """Bytes."""
    hash: str
    """Of the digest of the volume key."""


def begin_encryption(
    header: bytes, volume_key: SecretBytes, volume_size: int, resilience: Resilience
) -> tuple[bytes, ReencryptionState]:
    """
    Return the header of plain data that are to be encrypted from now on, made from that of the encrypted volume.

    `volume_size` is in bytes.
    """
    parsed = parse_header(header)
    final = replace(parsed.segments[0], flags=("backup-final",))
    previous = Segment(0, "linear", final.offset, final.size, flags=("backup-previous",))
    metadata = copy.deepcopy(choose_copy(header)[0].metadata)
    new = parsed.digest_of_segment(0)
    assert new is not None
    state = _state("encrypt", metadata, (previous, final), (None, new), forward=True)
    metadata, state = _begun(metadata, state, Keys(None, volume_key), volume_size, resilience)
    return commit(parsed, metadata).applied_to(header), state


def begin_decryption(
    header: Header, metadata: Json, volume_key: SecretBytes, volume_size: int, resilience: Resilience
) -> tuple[Json, ReencryptionState]:
    """
    Return the metadata of an encrypted volume that is to be plain; `volume_size` in bytes.

    It goes forward. Cryptsetup goes backward, and its `repair` destroys all the data if the last step of such a
    decryption was cut off (seen with 2.6.1 and 2.8.8): what it then takes for the beginning is the end.
    """
    whole = _only_segment(header)
    previous = replace(whole, flags=("backup-previous",))
    final = Segment(0, "linear", whole.offset, whole.size, flags=("backup-final",))
    state = _state("decrypt", metadata, (previous, final), (header.digest_of_segment(whole.id), None), forward=True)
    return _begun(metadata, state, Keys(volume_key, None), volume_size, resilience)


def begin_reencryption(  # noqa: PLR0917 - all of them are what it is about
    header: Header,
    metadata: Json,
    keys: Keys,
    side: NewSide,
    keyslots: Sequence[tuple[SecretBytes, NewKeyslot]],
    volume_size: int,
    resilience: Resilience,
) -> tuple[Json, ReencryptionState, list[Write]]:
    """
    Return the metadata of a volume that is to have another key or cipher, and key material to be written before.

    `keys` are the old and the new key; `keyslots` are the new key's, each with its secret; there are none if the key
    stays. `volume_size` is in bytes. Raises UsageError if nothing would change, HeaderError if there is no room.
    """
    whole, keeps = _only_segment(header), not keyslots
    assert keys.old is not None
    assert keys.new is not None
    with SectorCipher(side.cipher, keys.new, side.sector_size):
        pass  # a key that the cipher refuses is found before anything is written
    previous = replace(whole, flags=("backup-previous",))
    final = replace(
        whole, encryption=str(side.cipher), sector_size=side.sector_size, flags=("backup-final",), id=whole.id
    )
    if keeps and (final.encryption, final.sector_size) == (previous.encryption, previous.sector_size):
        raise UsageError("with --keep-key, name what is to change: --cipher or --sector-size")
    metadata = copy.deepcopy(metadata)
    old, writes = header.digest_of_segment(whole.id), list[Write]()
    new = old
    if not keeps:
        number = _free_number(metadata["digests"])
        metadata["digests"][str(number)] = new_digest(side.hash, keys.new, frozenset())
        taken = header
        for secret, slot in keyslots:
            chosen, material = put_keyslot(taken, metadata, keys.new, secret, slot, digest=number)
            writes.append(material)
            taken = replace(taken, keyslots=(*taken.keyslots, replace(taken.keyslots[0], id=chosen)))
        new = next(digest for digest in parse_digests(metadata) if digest.id == number)
    state = _state("reencrypt", metadata, (previous, final), (old, new), forward=True)
    metadata, state = _begun(metadata, state, keys, volume_size, resilience)
    return metadata, state, writes


def changed_protection(
    state: ReencryptionState, metadata: Json, keys: Keys, resilience: Resilience
) -> tuple[Json, ReencryptionState]:
    """Return a conversion, between two steps, with another protection in the same area."""
    before = state.protection
    if before.shift:
        raise UnsupportedFeature("the protection of a data shift cannot be changed")
    protection = resilience.protection(before.offset, before.size, state.sector_size)
    after = replace(state, protection=protection)
    digest = new_metadata_digest(after, keys.old, keys.new, resilience.hash)
    changed = with_protection(metadata, after, digest)
    vouching = next(found for found in parse_digests(changed) if after.keyslot in found.keyslots)
    return changed, replace(after, metadata_digest=vouching)


def _only_segment(header: Header) -> Segment:
    whole = header.segments[0]
    if header.version == 1:
        raise UnsupportedFeature("a LUKS1 volume is converted to LUKS2 first: 'lukshdrfs header convert --type luks2'")
    if len(header.segments) != 1 or whole.type != "crypt" or whole.integrity or whole.flags:
        raise UnsupportedFeature("only a volume of one encrypted segment without integrity can be converted")
    return whole


def _state(
    mode: str,
    metadata: Json,
    sides: tuple[Segment, Segment],
    digests: tuple[Digest | None, Digest | None],
    *,
    forward: bool,
) -> ReencryptionState:
    number = _free_number(metadata["keyslots"])
    if number >= MAX_KEYSLOTS:
        raise UsageError(f"all {MAX_KEYSLOTS} keyslots are in use, and a conversion takes one; remove one first")
    return ReencryptionState(
        version=2,
        mode=mode,
        forward=forward,
        keyslot=number,
        protection=Protection("none", 0, 0),
        previous=sides[0],
        final=sides[1],
        moved=None,
        old_digest=digests[0],
        new_digest=digests[1],
        metadata_digest=None,
        parts=(Part(Side.OLD, 0, sides[0].size),),
    )


def _free_number(objects: Json) -> int:
    return next(number for number in range(len(objects) + 1) if str(number) not in objects)


def _begun(
    metadata: Json, state: ReencryptionState, keys: Keys, volume_size: int, resilience: Resilience
) -> tuple[Json, ReencryptionState]:
    if volume_size % state.sector_size or not volume_size:
        raise DeviceError(
            f"the volume has {volume_size} bytes, which are no whole sectors of {state.sector_size}: the rest would be "
            "lost; see --sector-size"
        )
    gap = largest_gap(metadata)
    protection = resilience.protection(gap.offset, gap.size, state.sector_size)
    state = renumbered(replace(state, protection=protection))
    metadata = begun(metadata, state)
    number = _free_number(metadata["digests"])
    metadata["digests"][str(number)] = new_metadata_digest(state, keys.old, keys.new, resilience.hash)
    digest = next(found for found in parse_digests(metadata) if found.id == number)
    _check_room(metadata, state, volume_size)
    return metadata, replace(state, metadata_digest=digest)


def _check_room(metadata: Json, state: ReencryptionState, size: int) -> None:
    """Raise HeaderError if the metadata of a step would not fit, which are longer than those of the beginning."""
    parts = (Part(Side.NEW, 0, size), Part(Side.HOT, size, size), Part(Side.OLD, 2 * size, size))
    text = json.dumps(with_parts(metadata, state, parts), separators=(",", ":"))
    room = int(metadata["config"]["json_size"])
    if len(text) >= room:
        raise HeaderError(
            f"the header has {room} bytes for metadata, and a conversion takes {len(text)}; remove tokens or keyslots"
        )
