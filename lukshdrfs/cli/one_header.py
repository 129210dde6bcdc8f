"""Which header a command is about, and the volume key that a secret opens in it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from lukshdrfs.cli.arguments import kdf_limits, pin, secret_source
from lukshdrfs.errors import KeyslotError, NoUsableKeyslot, UnsupportedFeature, UsageError, WrongKey
from lukshdrfs.headers import HeaderFile, open_header, read_header
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.unlock import UnlockedKey, accept_volume_key, unlock
from lukshdrfs.luks.keys.unlock_work import check_work_to_unlock
from lukshdrfs.luks.keyslots import volume_digest
from lukshdrfs.luks.model import Digest, Header
from lukshdrfs.secret import SecretBytes


def header_name(arguments: argparse.Namespace) -> str:
    """Return where the one header is: detached, or at the start of the payload (or the header itself in its place)."""
    given = arguments.header or ([arguments.payload] if arguments.payload else [])
    if not given:
        raise UsageError("name a header with --header, or a payload")
    if len(given) > 1:
        raise UsageError("this command is about one header; give --header once")
    return str(given[0])


@contextmanager
def editable_header(arguments: argparse.Namespace, *, warn: bool = True, alone: bool = False) -> Iterator[HeaderFile]:
    """
    Open the header for editing. Ask nobody for a secret meanwhile: all others are kept from it.

    With `alone`, the place must not be in use, not even by a volume whose header it is.
    """
    with open_header(header_name(arguments), pin(arguments), warn=warn, alone=alone) as header:
        yield header


def header_to_edit(arguments: argparse.Namespace) -> Header:
    """Read the header, after making sure that it can be edited: a passphrase is not asked for in vain."""
    with editable_header(arguments) as file:
        return file.header


def readable_header(arguments: argparse.Namespace) -> Header:
    """Read the header."""
    return read_header(header_name(arguments), pin(arguments))


@contextmanager
def unlocked(header: Header, arguments: argparse.Namespace) -> Iterator[UnlockedKey]:
    """
    Ask for the secret, as often as allowed, and yield the key that it opens; it is wiped afterwards.

    The key is the volume's, or that of the unbound keyslot which `--key-slot` names.
    """
    source, digest = secret_source(arguments), _digest(header, arguments.key_slot)
    if source.volume_key_file is None:
        check_work_to_unlock(header, [digest], arguments.key_slot, kdf_limits(arguments) or KdfLimits())

    def open_with(secret: SecretBytes) -> UnlockedKey:
        if source.volume_key_file is not None:
            return accept_volume_key(header, digest, secret, kdf_limits(arguments))
        return unlock(header, digest, secret, arguments.key_slot, kdf_limits(arguments))

    key = source.try_until(f"Passphrase for {header_name(arguments)}: ", open_with)
    try:
        yield key
    finally:
        key.volume_key.wipe()


def authorised(header: Header, arguments: argparse.Namespace, keyslot: int) -> int:
    """
    Ask for the secret of any keyslot, as cryptsetup's `luksKillSlot` does before it destroys one.

    Return the number of the digest of `keyslot`. Raises WrongKey if the secret opens neither the volume nor `keyslot`,
    NoUsableKeyslot if that is not in use.
    """
    if header.keyslot(keyslot) is None:
        raise NoUsableKeyslot(f"keyslot {keyslot} is not in use")
    source, limits = secret_source(arguments), kdf_limits(arguments)
    volume, digest = volume_digest(header), _digest(header, keyslot)
    if source.volume_key_file is None:
        check_work_to_unlock(header, [volume, digest], None, limits or KdfLimits())

    def check(secret: SecretBytes) -> None:
        if source.volume_key_file is not None:
            accept_volume_key(header, volume, secret, limits).volume_key.wipe()
            return
        try:
            unlock(header, volume, secret, None, limits).volume_key.wipe()
        except (KeyslotError, NoUsableKeyslot, UnsupportedFeature, WrongKey):
            unlock(header, digest, secret, keyslot, limits).volume_key.wipe()

    source.try_until(f"Any passphrase for {header_name(arguments)}: ", check)
    return digest.id


def _digest(header: Header, keyslot: int | None) -> Digest:
    """Return the digest that the secret's keyslot is of."""
    named = None if keyslot is None else header.digest_of_keyslot(keyslot)
    return volume_digest(header) if named is None else named
