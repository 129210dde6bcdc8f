"""
From a secret to the volume key.

passphrase -(KDF)-> key of the keyslot's area -(decrypt, AF merge)-> volume key -(digest)-> verified.
Sources: LUKS2 specification, sections 3 and 4; cryptsetup, lib/luks2/luks2_keyslot.c and luks2_keyslot_luks2.c.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from lukshdrfs.errors import KeyslotError, LukshdrfsError, NoUsableKeyslot, OutOfMemory, WrongKey
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.material import open_keyslot, verify_digest
from lukshdrfs.luks.keys.unlock_work import check_work, slots_to_try, work_of_slots
from lukshdrfs.luks.model import Digest, Header, Keyslot, Priority
from lukshdrfs.secret import SecretBytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnlockedKey:
    """A verified volume key and where it came from."""

    volume_key: SecretBytes
    digest: int
    keyslot: int | None
    """None if the key was given as such."""


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
