"""`lukshdrfs key` on a header that several payloads share: what is done for one of them is done for all."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lukshdrfs.cli.arguments import kdf_limits, secret_source
from lukshdrfs.cli.commands.key.consequences import warn_of_orphans, warn_of_overwriting
from lukshdrfs.cli.one_header import editable_header, header_name
from lukshdrfs.cli.secrets.source import SecretSource, new_secret
from lukshdrfs.errors import LukshdrfsError, OutOfMemory, UsageError, WrongKey
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.keys.unlock import UnlockedKey, unlock
from lukshdrfs.luks.keys.unlock_work import check_work
from lukshdrfs.luks.keyslots import add_keyslot, change_keyslot, check_unchanged, remove_keyslot
from lukshdrfs.luks.luks2.shared import group_keyslots, header_for, same_passphrase, shared_payloads
from lukshdrfs.luks.model import SALT_SIZE, Header, Priority
from lukshdrfs.secret import SecretBytes

log = logging.getLogger(__name__)


@contextmanager
def unlocked_all(header: Header, arguments: argparse.Namespace) -> Iterator[list[UnlockedKey]]:
    """Ask for the passphrase, and yield the key of each payload that it opens."""
    source = secret_source(arguments)
    if source.volume_key_file is not None:
        raise UsageError("the header is for several payloads, each with its own volume key; name a passphrase")

    limits = kdf_limits(arguments) or KdfLimits()

    def open_with(secret: SecretBytes) -> list[UnlockedKey]:
        opened = []
        check_work(header, [slot for slot in header.keyslots if slot.priority != Priority.IGNORE], limits)
        for payload in shared_payloads(header):
            alone = header_for(header, payload)
            try:
                opened.append(unlock(alone, alone.digests[0], secret, None, limits))
            except OutOfMemory:
                raise
            except LukshdrfsError as error:
                log.info("payload %s: %s", payload.name, error)
        if not opened:
            raise WrongKey("no key available with this passphrase")
        return opened

    keys = source.try_until(f"Passphrase for {header_name(arguments)}: ", open_with)
    if len(keys) < len(shared_payloads(header)):
        log.warning("the passphrase opens %d of the header's %d payloads", len(keys), len(shared_payloads(header)))
    try:
        yield keys
    finally:
        for key in keys:
            key.volume_key.wipe()


def _salted(slot: NewKeyslot) -> NewKeyslot:
    """Return the same keyslot with a salt of its own."""
    return dataclasses.replace(slot, kdf=dataclasses.replace(slot.kdf, salt=os.urandom(SALT_SIZE)))


def add_to_all(
    arguments: argparse.Namespace, header: Header, new_slot: Callable[[int], NewKeyslot], source: SecretSource
) -> list[int]:
    """Add a keyslot for another passphrase to each payload that the old one opens; return their numbers."""
    added = []
    with unlocked_all(header, arguments) as keys:
        slot = new_slot(len(keys[0].volume_key))
        with new_secret(source, "New passphrase: ") as secret, editable_header(arguments, warn=False) as file:
            for key in keys:
                check_unchanged(file.header, header, key.digest)
                chosen, edit = add_keyslot(file.header, key.volume_key, secret, _salted(slot), digest=key.digest)
                file.apply(edit)
                added.append(chosen)
            file.apply(group_keyslots(file.header, added))
    return added


def change_all(
    arguments: argparse.Namespace, header: Header, new_slot: Callable[[int], NewKeyslot], source: SecretSource
) -> list[int]:
    """Give all keyslots that the old passphrase opens the new one; return their numbers."""
    with unlocked_all(header, arguments) as keys:
        slot = new_slot(len(keys[0].volume_key))
        changed = [key.keyslot for key in keys if key.keyslot is not None]
        with new_secret(source, "New passphrase: ") as secret, editable_header(arguments, warn=False) as file:
            for key, number in zip(keys, changed, strict=True):
                check_unchanged(file.header, header, key.digest, number)
                edit = change_keyslot(
                    file.header, number, key.volume_key, secret, _salted(slot), in_place=arguments.in_place
                )
                warn_of_overwriting(edit, file.header, number)
                file.apply(edit)
    return changed


def remove_all(
    arguments: argparse.Namespace, header: Header, named: int | None, *, authorise: bool = False
) -> list[int]:
    """
    Remove the keyslots of one passphrase, by one of their numbers or by the passphrase; return all their numbers.

    `authorise` asks for a passphrase, any one, before keyslots that are named are removed.
    """
    opened: list[tuple[int, int]] = []
    if named is None or authorise:
        with unlocked_all(header, arguments) as keys:
            opened = [(key.digest, key.keyslot) for key in keys if key.keyslot is not None]
    with editable_header(arguments, warn=False) as file:
        for digest, number in opened:
            check_unchanged(file.header, header, digest, number)
        removed = [number for _, number in opened] if named is None else list(same_passphrase(file.header, named))
        _check_what_is_left(file.header, set(removed), force=arguments.force)
        before = file.header
        for number in removed:
            file.apply(remove_keyslot(file.header, number))
        warn_of_orphans(before, file.header)
    return removed


def _check_what_is_left(header: Header, removed: set[int], *, force: bool) -> None:
    """Raise UsageError if a payload would have no keyslot any more."""
    for payload in shared_payloads(header):
        left = {slot.id for slot in header_for(header, payload).keyslots} - removed
        if not left and not force:
            raise UsageError(
                f"nothing would open payload {payload.name} any more, and its key would be lost; --force removes it "
                "all the same"
            )
