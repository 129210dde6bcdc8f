"""Changing the keyslots of a header of either version."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import InUse, UnsupportedFeature, UsageError
from lukshdrfs.luks.edit import HeaderEdit
from lukshdrfs.luks.keys.kdf_cost import KdfWish, choose_kdf
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.luks1 import edit as luks1_edit
from lukshdrfs.luks.luks2 import edit as luks2_edit
from lukshdrfs.luks.model import Digest, Header, Priority
from lukshdrfs.secret import SecretBytes

USUAL_ENCRYPTION, USUAL_KEY_SIZE = "aes-xts-plain64", 64
"""Of LUKS2 keyslot areas where the data's cipher cannot be theirs (cryptsetup, `DEFAULT_LUKS2_KEYSLOT_CIPHER`)."""


def volume_digest(header: Header) -> Digest:
    """Return the digest of the key of the first segment that is encrypted. Raises UnsupportedFeature without one."""
    for segment in header.segments:
        digest = header.digest_of_segment(segment.id)
        if digest is not None:
            return digest
    raise UnsupportedFeature("no segment of the header is encrypted; it has no volume key")


def check_unchanged(now: Header, before: Header, digest: int, keyslot: int | None = None) -> None:
    """Raise InUse unless a header still has the digest, and the keyslot, that it had when a key was unlocked."""
    same = now.version == before.version and _digest(now, digest) == _digest(before, digest)
    if keyslot is not None:
        same = same and now.keyslot(keyslot) == before.keyslot(keyslot)
        same = same and _material(now, keyslot) == _material(before, keyslot)
    if not same:
        raise InUse("another program has changed the header meanwhile; nothing was changed now, try again")


def _digest(header: Header, number: int) -> Digest | None:
    """Return a digest, whatever keyslots it has."""
    found = next((digest for digest in header.digests if digest.id == number), None)
    return None if found is None else replace(found, keyslots=frozenset())


def _material(header: Header, keyslot: int) -> bytes:
    slot = header.keyslot(keyslot)
    return b"" if slot is None else header.area[slot.area.offset : slot.area.offset + slot.area.size]


def new_keyslot(
    header: Header,
    key_size: int,
    wish: KdfWish,
    *,
    encryption: str | None = None,
    area_key_size: int | None = None,
    priority: int | None = None,
) -> NewKeyslot:
    """
    Return what a new keyslot for a key of `key_size` bytes is like: as the user wishes, else as cryptsetup makes it.

    Raises UsageError for a wish that cannot be had, UnsupportedFeature for an unknown cipher.
    """
    data = header.segments[0].encryption
    if header.version == 1:
        if encryption or area_key_size:
            raise UsageError("in a LUKS1 header, keyslots have the cipher of the data")
        return NewKeyslot(choose_kdf(wish), CipherSpec.parse(data), key_size, header.digests[0].hash, priority)
    if encryption is None:
        encryption, area_key_size = _usual_encryption(data, key_size, area_key_size)
    spec = CipherSpec.parse(encryption)
    size = area_key_size or spec.key_sizes[-1]
    spec.check_key_size(size)
    return NewKeyslot(choose_kdf(wish), spec, size, wish.hash, priority)


def _usual_encryption(data: str, key_size: int, area_key_size: int | None) -> tuple[str, int]:
    """Return the data's cipher if an area can have it, else the usual one."""
    try:
        spec = CipherSpec.parse(data)
        spec.check_key_size(key_size)
    except UnsupportedFeature:
        return USUAL_ENCRYPTION, area_key_size or USUAL_KEY_SIZE
    return str(spec), area_key_size or key_size


class _Edits(Protocol):
    """How the keyslots of a header of one version are changed: a module."""

    def add_keyslot(
        self, header: Header, volume_key: SecretBytes, passphrase: SecretBytes, slot: NewKeyslot, *, digest: int,
        number: int | None,
    ) -> tuple[int, HeaderEdit]: ...  # fmt: skip

    def change_keyslot(
        self, header: Header, number: int, volume_key: SecretBytes, passphrase: SecretBytes, slot: NewKeyslot, *,
        in_place: bool,
    ) -> HeaderEdit: ...  # fmt: skip

    def remove_keyslot(self, header: Header, number: int) -> HeaderEdit: ...

    def set_priority(self, header: Header, number: int, priority: Priority) -> HeaderEdit: ...


def _edits(header: Header) -> _Edits:
    return luks1_edit if header.version == 1 else luks2_edit


def add_keyslot(
    header: Header,
    volume_key: SecretBytes,
    passphrase: SecretBytes,
    slot: NewKeyslot,
    *,
    digest: int = 0,
    number: int | None = None,
) -> tuple[int, HeaderEdit]:
    """
    Return the number of a new keyslot, and the edit that makes it: keyslot `number`, or the first one that is free.

    `digest` is the number of the digest that the key has been verified against. Raises UsageError if the keyslot is
    in use, HeaderError if there is no room.
    """
    return _edits(header).add_keyslot(header, volume_key, passphrase, slot, digest=digest, number=number)


def change_keyslot(
    header: Header,
    number: int,
    volume_key: SecretBytes,
    passphrase: SecretBytes,
    slot: NewKeyslot,
    *,
    in_place: bool = False,
) -> HeaderEdit:
    """
    Return the edit that gives a keyslot another passphrase; the old or the new one opens it at any moment.

    Where there is no room for both, and `in_place` says so, there is a moment at which neither does: the edit says that
    it is `in_place`. Without it, HeaderError (LUKS2) or UsageError (LUKS1) is raised.
    """
    return _edits(header).change_keyslot(header, number, volume_key, passphrase, slot, in_place=in_place)


def remove_keyslot(header: Header, number: int) -> HeaderEdit:
    """Return the edit that destroys a keyslot. Raises NoUsableKeyslot if it is not in use."""
    return _edits(header).remove_keyslot(header, number)


def set_priority(header: Header, number: int, priority: Priority) -> HeaderEdit:
    """Return the edit that sets when a keyslot is tried. Raises UnsupportedFeature for LUKS1, which has none."""
    return _edits(header).set_priority(header, number, priority)
