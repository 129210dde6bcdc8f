"""Secrets of a new volume."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from lukshdrfs.cli.arguments import (
    is_standard_input,
    key_bytes,
)
from lukshdrfs.cli.secrets.source import SecretSource, new_secret
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.keys.kdf_cost import KdfWish
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.keyslots import new_keyslot
from lukshdrfs.luks.model import Header
from lukshdrfs.secret import SecretBytes


def new_slot(arguments: argparse.Namespace, header: Header, key_size: int, wish: KdfWish) -> NewKeyslot:
    return new_keyslot(
        header,
        key_size,
        wish,
        encryption=arguments.keyslot_cipher,
        area_key_size=key_bytes(arguments.keyslot_key_size, "--keyslot-key-size"),
    )


def existing_secret(arguments: argparse.Namespace) -> SecretBytes:
    """Return the passphrase that opens the header already."""
    if len(arguments.key_file) > 1:
        raise UsageError("with --shared-header, name one key file: the passphrase that opens the header already")
    source = SecretSource(
        arguments.key_file[0] if arguments.key_file else None,
        arguments.keyfile_offset,
        arguments.keyfile_size,
        arguments.passphrase_file,
    )
    return source.read(f"Passphrase for {arguments.shared_header}: ")


@contextmanager
def new_volume_key(arguments: argparse.Namespace, key_size: int) -> Iterator[SecretBytes]:
    if arguments.volume_key_file is None:
        with SecretBytes.random(key_size) as key:
            yield key
        return
    with SecretSource(volume_key_file=arguments.volume_key_file).read("") as key:
        if len(key) != key_size:
            raise UsageError(
                f"volume key file {arguments.volume_key_file} has {len(key)} bytes, the volume key {key_size}; "
                "see --key-size"
            )
        yield key


def new_secrets(arguments: argparse.Namespace) -> Iterator[SecretBytes]:
    """Yield the secrets of the new keyslots, each one the caller's to wipe."""
    sources = [
        SecretSource(key_file, arguments.keyfile_offset, arguments.keyfile_size) for key_file in arguments.key_file
    ] or [_typed_source(arguments)]
    for source in sources:
        yield new_secret(source, f"New passphrase for {arguments.payload}: ")


def _typed_source(arguments: argparse.Namespace) -> SecretSource:
    """Return the source of one passphrase. The volume key, which is read to its end, may have standard input."""
    brings = "the volume key" if is_standard_input(arguments.volume_key_file) else ""
    return SecretSource(passphrase_file=arguments.passphrase_file, tries=arguments.tries, stdin_brings=brings)
