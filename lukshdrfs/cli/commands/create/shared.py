"""A further payload in a header that is there."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.cli.commands.create.header import header_form
from lukshdrfs.cli.commands.create.payload import fill, opened_payload
from lukshdrfs.cli.commands.create.secrets import existing_secret, new_slot, new_volume_key
from lukshdrfs.errors import UsageError
from lukshdrfs.headers import open_header
from lukshdrfs.luks.keys.kdf_cost import KdfWish
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.keyslots import check_unchanged, volume_digest
from lukshdrfs.luks.luks2.format import Luks2Format
from lukshdrfs.luks.luks2.shared import add_payload


def share(arguments: argparse.Namespace, cipher: CipherSpec, key_size: int, wish: KdfWish) -> int:
    """Make a payload with a key of its own in a header that is there, opened by the same passphrase."""
    path = arguments.shared_header
    with open_header(path) as file:
        header = file.header  # it can be edited, and is not locked while somebody is asked
    if header.version == 1:
        raise UsageError(f"header {path} is LUKS1, which is for one payload; convert it to luks2 first")
    name = arguments.payload_name or Path(arguments.payload).stem
    if os.path.realpath(path) == os.path.realpath(arguments.payload) and (arguments.offset or 0) < len(header.area):
        raise UsageError(
            f"payload and header are the same file, and the header takes its first {len(header.area)} bytes"
        )
    with opened_payload(arguments) as (payload, overwritten):
        created = overwritten is None
        form = header_form(arguments, cipher, key_size, payload.size, created=created)
        assert isinstance(form, Luks2Format)
        with existing_secret(arguments) as secret, new_volume_key(arguments, key_size) as volume_key:
            first = unlock(header, volume_digest(header), secret)
            first.volume_key.wipe()  # what matters is that it opens
            opened_by = first.keyslot
            assert opened_by is not None
            slot = new_slot(arguments, header, key_size, wish)
            if overwritten:
                overwritten.check_unchanged()
                overwritten.keep_header(arguments, arguments.payload)
            fill(arguments, payload, form, created=created)
            with open_header(path, warn=False) as file:
                check_unchanged(file.header, header, volume_digest(header).id, opened_by)
                edit = add_payload(
                    file.header, volume_key, secret, slot,
                    name=name, segment=form.segment, first_name=arguments.first_name, opened_by=opened_by,
                )  # fmt: skip
                file.apply(edit)
        if overwritten:
            overwritten.erase_signatures(payload.write)
        payload.flush()
    return 0
