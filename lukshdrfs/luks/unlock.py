"""
From a secret to the volume key.

passphrase -(KDF)-> key of the keyslot's area -(decrypt, AF merge)-> volume key -(digest)-> verified.
Sources: LUKS2 specification, sections 3 and 4; cryptsetup, lib/luks2/luks2_keyslot.c and luks2_keyslot_luks2.c.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from lukshdrfs.cipher import CipherSpec, SectorCipher, af_merge
from lukshdrfs.errors import KeyslotError, LukshdrfsError, NoUsableKeyslot, OutOfMemory, UnsupportedFeature, WrongKey
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.kdf import KdfLimits, derive, pbkdf2_into
from lukshdrfs.luks.model import Digest, Header, Keyslot, Priority
from lukshdrfs.luks.unlock_work import check_work, slots_to_try, work_of_slots
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import round_up

log = logging.getLogger(__name__)

AREA_SECTOR_SIZE = 512
"""Bytes; keyslot areas have this sector size whatever the segments have."""


@dataclass(frozen=True, slots=True)
class UnlockedKey:
    """A verified volume key and where it came from."""

    volume_key: SecretBytes
    digest: int
    keyslot: int | None
    """None if the key was given as such."""


def verify_digest(digest: Digest, volume_key: SecretBytes, limits: KdfLimits) -> None:
    """
    Raise WrongKey unless the key is the one that the digest is of, KeyslotError if the digest is damaged.

    HMAC takes a key and the same key with zeros behind it for equal, so callers compare the size first.
    """
    if digest.problem:
        raise KeyslotError(digest.problem)
    if digest.unsupported:
        raise UnsupportedFeature(f"digest {digest.id}: {digest.unsupported}")
    if not 0 < digest.iterations <= limits.iterations:
        raise KeyslotError(f"digest {digest.id}: {digest.iterations} iterations are refused")
    with SecretBytes(len(digest.digest)) as found:
        pbkdf2_into(found, volume_key, digest.salt, digest.iterations, digest.hash)
        if not hmac.compare_digest(found.view, digest.digest):
            raise WrongKey("the key does not fit the volume's digest")


def open_keyslot(header: Header, slot: Keyslot, passphrase: SecretBytes, limits: KdfLimits) -> SecretBytes:
    """
    Return what a keyslot holds, verified against the digest that is bound to it.

    Raises WrongKey if the passphrase is not this slot's, KeyslotError and UnsupportedFeature if the slot cannot
    be opened by any.
    """
    if slot.unsupported:
        raise UnsupportedFeature(slot.unsupported)
    if slot.problem or slot.kdf is None or slot.af is None:
        raise KeyslotError(slot.problem or "it holds no key")
    limits.check(slot.kdf)
    spec, gcrypt_hash = CipherSpec.parse(slot.area.encryption), find_hash(slot.af.hash).gcrypt
    spec.check_key_size(slot.area.key_size)
    digest = header.digest_of_keyslot(slot.id)
    if digest is None:
        raise KeyslotError("no digest is bound to it")
    # the last sector may reach past the stripes; cryptsetup's `AF_split_sectors` rounds up likewise
    material_size = round_up(slot.key_size * slot.af.stripes, AREA_SECTOR_SIZE)
    start = slot.area.offset
    if start + material_size > len(header.area):
        raise KeyslotError("its area is cut off")
    with (
        derive(slot.kdf, passphrase, slot.area.key_size) as area_key,
        SecretBytes.copy_of(memoryview(header.area)[start : start + material_size]) as material,
    ):
        with SectorCipher(spec, area_key, AREA_SECTOR_SIZE) as cipher:
            cipher.decrypt(material.view, 0)
        volume_key = af_merge(material, slot.key_size, slot.af.stripes, gcrypt_hash)
    try:
        verify_digest(digest, volume_key, limits)
    except LukshdrfsError:
        volume_key.wipe()
        raise
    return volume_key


def _candidates(header: Header, digest: Digest, keyslot: int | None, limits: KdfLimits) -> Iterator[Keyslot]:
    """
    Yield the keyslots to try: the named one, or the preferred ones and then the normal ones by number.

    Raises KeyslotError before it would take more work than is allowed.
    """
    if keyslot is not None:
        slot = header.keyslot(keyslot)
        if slot is None:
            raise NoUsableKeyslot(f"keyslot {keyslot} is not in use")
        if slot.id in digest.keyslots:
            check_work(header, [slot], limits)
        yield slot
        return
    spent = 0
    for priority in (Priority.PREFER, Priority.NORMAL):
        slots = slots_to_try(header, digest, priority)
        spent = check_work(header, slots, limits, before=spent)
        yield from slots


def unlock(
    header: Header,
    digest: Digest,
    passphrase: SecretBytes,
    keyslot: int | None = None,
    limits: KdfLimits | None = None,
) -> UnlockedKey:
    """
    Return the key of `digest` that a passphrase opens, from the named keyslot or from any.

    A damaged keyslot is reported in the log and does not stop the others. Nothing is tried that would take more work
    than `limits` allow for one secret: neither all keyslots, if that would, nor those behind the preferred ones.

    Raises WrongKey if no keyslot takes the passphrase, NoUsableKeyslot if there is none to try or the passphrase
    is that of a keyslot with another key, KeyslotError if all that could be tried are damaged or it would take too much
    work, OutOfMemory.
    """
    limits = limits or KdfLimits()
    wrong, problems = 0, list[KeyslotError]()
    try:
        for slot in _candidates(header, digest, keyslot, limits):
            if slot.id not in digest.keyslots:
                raise NoUsableKeyslot(f"keyslot {slot.id} holds another key than the volume's")
            try:
                return UnlockedKey(open_keyslot(header, slot, passphrase, limits), digest.id, slot.id)
            except WrongKey:
                wrong += 1
            except OutOfMemory:
                raise
            except LukshdrfsError as error:
                problems.append(KeyslotError(f"keyslot {slot.id} cannot be used: {error}"))
        if wrong == 0:  # the last problem is told by the exception, not by the log
            raise problems.pop() if problems else NoUsableKeyslot("no usable keyslot is available")
        _refuse_unbound(header, digest, passphrase, keyslot, limits)
        raise WrongKey("no key available with this passphrase")
    finally:
        for problem in problems:
            log.warning("%s", problem)


def _refuse_unbound(
    header: Header, digest: Digest, passphrase: SecretBytes, keyslot: int | None, limits: KdfLimits
) -> None:
    """Tell a passphrase of an unbound keyslot from a wrong one: raise NoUsableKeyslot for it."""
    if keyslot is not None:
        return
    unbound = [slot for slot in header.keyslots if slot.id not in digest.keyslots and slot.priority != Priority.IGNORE]
    spent = sum(work_of_slots(header, slots_to_try(header, digest, priority), limits) for priority in Priority)
    if spent + work_of_slots(header, unbound, limits) > limits.most_unlock_work_kib:
        return  # this is but for a better message
    for slot in unbound:
        try:
            open_keyslot(header, slot, passphrase, limits).wipe()
        except LukshdrfsError:
            continue
        raise NoUsableKeyslot(
            f"no usable keyslot is available: the passphrase is that of keyslot {slot.id}, which holds another key"
        )


def accept_volume_key(
    header: Header, digest: Digest, volume_key: SecretBytes, limits: KdfLimits | None = None
) -> UnlockedKey:
    """Return a copy of a given key if it is the digest's. Raises WrongKey if it is not."""
    sizes = {slot.key_size for slot in header.keyslots if slot.id in digest.keyslots}
    if sizes and len(volume_key) not in sizes:
        expected = " or ".join(str(size) for size in sorted(sizes))
        raise WrongKey(f"the volume key has {len(volume_key)} bytes, the volume's has {expected}")
    verify_digest(digest, volume_key, limits or KdfLimits())
    return UnlockedKey(SecretBytes.copy_of(volume_key.view), digest.id, None)
