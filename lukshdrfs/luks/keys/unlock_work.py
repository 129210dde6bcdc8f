"""
How much work one secret can cause over all the keyslots that it is tried on, told before any of it is done.

A header says what each keyslot costs, and there may be 32 of them. Each within its own ceiling, they could still keep a
machine busy for hours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from lukshdrfs.errors import KeyslotError
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.model import Digest, Header, Keyslot, Priority

log = logging.getLogger(__name__)

_KIB_A_SECOND = 1 << 20
"""Of Argon2's memory times passes: what an ordinary machine does with several threads."""
_LONG_S = 60


def slots_to_try(header: Header, digest: Digest, priority: Priority) -> list[Keyslot]:
    """Return the keyslots of a priority that hold the key of a digest, by number."""
    return [slot for slot in header.keyslots if slot.id in digest.keyslots and slot.priority == priority]


def work_of_slots(header: Header, slots: Iterable[Keyslot], limits: KdfLimits) -> int:
    """
    Return what it takes to try a secret on some keyslots, the verifying of what comes out of them included.

    In KiB of Argon2's memory times passes. Keyslots that are refused whatever the secret is cost nothing.
    """
    total = 0
    for slot in slots:
        if slot.problem or slot.kdf is None:
            continue
        try:
            limits.check(slot.kdf)
        except KeyslotError:
            continue
        digest = header.digest_of_keyslot(slot.id)
        total += limits.work_of(slot.kdf)
        if digest is not None and not digest.problem:
            total += limits.work_of_iterations(digest.iterations)
    return total


def check_work(header: Header, slots: list[Keyslot], limits: KdfLimits, *, before: int = 0) -> int:
    """
    Return what it takes to try a secret on some keyslots, and `before`, which has been spent already.

    Raises KeyslotError if that is above the ceiling; says so if it may take more than a minute.
    """
    work = before + work_of_slots(header, slots, limits)
    most = limits.most_unlock_work_kib
    if (before or len(slots) > 1) and work > most:
        raise KeyslotError(
            f"trying the secret on {'more' if before else len(slots)} keyslots would take about {_duration(work)}, "
            f"{work / most:.1f} times what is allowed; name one with --key-slot, or allow it with --no-kdf-limit"
        )
    if work > before and work > _LONG_S * _KIB_A_SECOND:
        which = "the keyslot" if len(slots) == 1 else f"{len(slots)} keyslots"
        log.warning("trying the secret on %s may take about %s", which, _duration(work))
    return work


def check_work_to_unlock(header: Header, digests: Iterable[Digest], keyslot: int | None, limits: KdfLimits) -> None:
    """
    Raise KeyslotError if a secret would be refused whatever it is, for the work that it takes; before it is asked for.

    That is so if the keyslots which are tried first are above the ceiling: the preferred ones, or without these, all.
    """
    if keyslot is not None:
        return
    chosen = list(digests)
    for priority in (Priority.PREFER, Priority.NORMAL):
        slots = [slot for digest in chosen for slot in slots_to_try(header, digest, priority)]
        if slots:
            check_work(header, slots, limits)
            return


def _duration(work: int) -> str:
    seconds = work / _KIB_A_SECOND
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
