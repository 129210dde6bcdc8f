"""
Changes of a LUKS1 header.

A keyslot is in use while its `active` word says so, and that word is written last when a keyslot is made and first
when it goes: four bytes in one sector of 512, which the storage writes whole. Everything else of the entry, which
may lie in two sectors (keyslot 6), is written while the keyslot is not in use.
Sources: LUKS1 specification 1.2.3, figure 2 and section 4; cryptsetup, lib/luks1/keymanage.c.
"""

from __future__ import annotations

import struct

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import NoUsableKeyslot, UnsupportedFeature, UsageError
from lukshdrfs.luks.edit import HeaderEdit, Write, wiping
from lukshdrfs.luks.keys.hashes import is_same_hash
from lukshdrfs.luks.keys.material import NewKeyslot, seal
from lukshdrfs.luks.luks1.phdr import DISABLED, ENABLED, PHDR, SLOT, SLOTS, Slot, read_slots
from lukshdrfs.luks.model import STRIPES, Header, Kdf, Priority
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR, round_up

UUID_OFFSET = PHDR.size - 40


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
    Return the number of a new keyslot, and the edit that makes it. There is one digest, number 0.

    Raises UsageError if keyslot `number` is in use, none is free, or the header cannot have such a keyslot.
    """
    assert digest == 0
    entry = _free_slot(header, number)
    material = _sealed(header, volume_key, passphrase, slot)
    return entry.number, _enabling(entry, slot.kdf, material)


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
    Return the edit by which a keyslot takes another passphrase.

    A free keyslot has the new one until the old one's place is taken over. Where none is free, and `in_place` says so,
    the keyslot is overwritten at once. Raises UsageError if none is free and it does not.
    """
    old = _slot(header, number)
    spare = next((entry for entry in read_slots(header.area) if entry.active == DISABLED), None)
    if spare is None and not in_place:
        raise UsageError(
            "all keyslots are in use, and a change needs a free one for a moment; --in-place does without, "
            "or remove another keyslot first"
        )
    material = _sealed(header, volume_key, passphrase, slot)
    if spare is None:
        entry = _parameters(old, slot.kdf.iterations, slot.kdf.salt, ENABLED)
        return HeaderEdit(((Write(old.offset_sectors * SECTOR, material), entry),), in_place=True)
    return (
        _enabling(spare, slot.kdf, material)
        .then(HeaderEdit(((_state(old, DISABLED),),)))
        .then(_enabling(old, slot.kdf, material))
        .then(_disabling(spare, len(material)))
    )


def remove_keyslot(header: Header, number: int) -> HeaderEdit:
    """Return the edit that overwrites a keyslot's material and marks it as not in use."""
    entry = _slot(header, number)
    return _disabling(entry, round_up(header.keyslots[0].key_size * STRIPES, SECTOR))


def set_uuid(uuid: str) -> HeaderEdit:
    """Return the edit that gives the volume another UUID (36 characters); it lies in one sector."""
    return HeaderEdit(((Write(UUID_OFFSET, uuid.encode("ascii").ljust(40, b"\0")),),))


def _slot(header: Header, number: int) -> Slot:
    if header.keyslot(number) is None:
        raise NoUsableKeyslot(f"keyslot {number} is not in use")
    return read_slots(header.area)[number]


def _free_slot(header: Header, wanted: int | None) -> Slot:
    slots = read_slots(header.area)
    if wanted is None:
        free = next((slot for slot in slots if slot.active == DISABLED), None)
        if free is None:
            raise UsageError(f"all {SLOTS} keyslots are in use; remove one first")
        return free
    if wanted >= SLOTS:
        raise UsageError(f"there is no keyslot {wanted}; a LUKS1 header has 0 to {SLOTS - 1}")
    if slots[wanted].active != DISABLED:
        raise UsageError(f"keyslot {wanted} is in use; take another, or change or remove it")
    return slots[wanted]


def _sealed(header: Header, volume_key: SecretBytes, passphrase: SecretBytes, slot: NewKeyslot) -> bytes:
    """Return the key material without what fills it up: areas of old headers are not aligned (cryptsetup 1.0)."""
    own = header.digests[0].hash
    if slot.kdf.type != "pbkdf2" or not (is_same_hash(slot.kdf.hash, own) and is_same_hash(slot.hash, own)):
        raise UsageError(f"a LUKS1 header has no {slot.kdf.type} with {slot.kdf.hash or slot.hash}; take pbkdf2, {own}")
    if slot.encryption != CipherSpec.parse(header.segments[0].encryption) or slot.area_key_size != len(volume_key):
        raise UsageError("in a LUKS1 header, keyslots have the cipher of the data")
    if slot.priority is not None:
        raise UnsupportedFeature("keyslots of a LUKS1 header have no priority")
    return seal(volume_key, passphrase, slot)[: round_up(len(volume_key) * STRIPES, SECTOR)]


def _entry_offset(slot: Slot) -> int:
    return PHDR.size + slot.number * SLOT.size


def _state(slot: Slot, active: int) -> Write:
    return Write(_entry_offset(slot), struct.pack(">I", active))


def _parameters(slot: Slot, iterations: int, salt: bytes, active: int = DISABLED) -> Write:
    """Return an entry, which is not in use unless `active` says so."""
    return Write(_entry_offset(slot), SLOT.pack(active, iterations, salt, slot.offset_sectors, STRIPES))


def _enabling(slot: Slot, kdf: Kdf, material: bytes) -> HeaderEdit:
    return HeaderEdit(
        (
            (Write(slot.offset_sectors * SECTOR, material), _parameters(slot, kdf.iterations, kdf.salt)),
            (_state(slot, ENABLED),),
        )
    )


def _disabling(slot: Slot, material_size: int) -> HeaderEdit:
    end = HeaderEdit(((_state(slot, DISABLED),), (_parameters(slot, 0, b""),)))
    return wiping(slot.offset_sectors * SECTOR, material_size).then(end)


def set_priority(header: Header, number: int, priority: Priority) -> HeaderEdit:  # noqa: ARG001 - as for LUKS2
    """Raise UnsupportedFeature: when a keyslot is tried cannot be set."""
    raise UnsupportedFeature("keyslots of a LUKS1 header have no priority")
