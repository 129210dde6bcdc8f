"""What may be asked of `create`, and what goes together."""

from __future__ import annotations

import argparse
import os

from lukshdrfs.cli.arguments import (
    checked_uuid,
    is_standard_input,
    payload_name,
)
from lukshdrfs.cli.output import output_descriptor
from lukshdrfs.errors import UsageError
from lukshdrfs.sectors import SECTOR as LUKS1_SECTOR_SIZE


def check_request(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what cannot be, or cannot be together."""
    payload = payload_name(arguments)
    payload.check()
    if not payload.is_plain and not is_detached(arguments):
        raise UsageError("an attached header is for a plain file or device; name a place for it with --header")
    if arguments.type not in ("luks1", "luks2"):
        raise UsageError(f"--type {arguments.type} is not supported; expected luks2 or luks1")
    if arguments.uuid is not None:
        arguments.uuid = checked_uuid(arguments.uuid)
    if arguments.key_file and arguments.passphrase_file is not None:
        raise UsageError("give --key-file or --passphrase-file, not both")
    keys = [*arguments.key_file, arguments.passphrase_file, arguments.volume_key_file]
    if sum(map(is_standard_input, keys)) > 1:
        raise UsageError("standard input can be one key, not several")
    if arguments.header is not None and output_descriptor(arguments.header) is not None:
        raise UsageError(
            f"--header {arguments.header}: a header is made in a file or on a device; name one, and have "
            "'lukshdrfs header backup' write it to standard output"
        )
    _check_shared(arguments)
    if arguments.size == 0:
        raise UsageError("--size 0: the volume would be empty")
    if arguments.type == "luks1":
        _check_luks1(arguments)


def _check_shared(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what does not go together with a header that is there."""
    if arguments.shared_header is not None and (arguments.header or arguments.type == "luks1"):
        raise UsageError("--shared-header is a LUKS2 header that is there; leave out --header and --type")
    if arguments.shared_header is None and arguments.payload_name is not None:
        raise UsageError("--payload-name is for --shared-header")


def _check_luks1(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what LUKS1 does not have."""
    if arguments.label or arguments.subsystem:
        raise UsageError("--label and --subsystem: LUKS1 has neither; leave them out, or take --type luks2")
    if arguments.luks2_metadata_size is not None or arguments.luks2_keyslots_size is not None:
        raise UsageError("--luks2-metadata-size and --luks2-keyslots-size are for --type luks2")
    if arguments.sector_size not in (None, LUKS1_SECTOR_SIZE):
        raise UsageError(f"--sector-size {arguments.sector_size}: LUKS1 has 512 only; take --type luks2")
    arguments.sector_size = LUKS1_SECTOR_SIZE


def is_detached(arguments: argparse.Namespace) -> bool:
    return arguments.header is not None or arguments.shared_header is not None


def check_header_is_no_payload(arguments: argparse.Namespace) -> None:
    if os.path.realpath(arguments.header) == os.path.realpath(arguments.payload):
        raise UsageError("header and payload are the same file; leave --header out for an attached header")


def wanted_size(arguments: argparse.Namespace, *, created: bool) -> int | None:
    """Return how many bytes of an existing payload are to be the volume; None: as far as it goes."""
    return None if created or arguments.size is None else int(arguments.size)
