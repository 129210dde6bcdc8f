"""Headers with cheap keyslots, made in memory, and edits of them as values."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.errors import NoUsableKeyslot, WrongKey
from lukshdrfs.luks import keyslots
from lukshdrfs.luks.edit import HeaderEdit
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.luks1.format import Luks1Format
from lukshdrfs.luks.luks2.format import Luks2Format
from lukshdrfs.luks.model import Header, Kdf
from lukshdrfs.secret import SecretBytes

CIPHER = CipherSpec.parse("aes-xts-plain64")
KEY = random.Random(1).randbytes(32)
UUID = "00000000-1111-2222-3333-444444444444"
STRIPES = 4000
AREA = 128 * 1024
"""Of a keyslot for a key of 32 bytes: 4000 stripes, rounded up to 4096."""
Edit = Callable[[Header], HeaderEdit]


def kdf(salt: int = 0) -> Kdf:
    """Return a KDF that costs nothing."""
    return Kdf("pbkdf2", bytes([salt]) * 32, 10 + salt, hash="sha256")


def new_slot(salt: int = 0, **options: Any) -> NewKeyslot:
    """Return what a keyslot is to be like."""
    return NewKeyslot(kdf(salt), CIPHER, len(KEY), **options)


def empty(version: int, slots: int = 4, data_offset: int = 0) -> bytes:
    """Return a header without keyslots; a LUKS2 one has room for `slots` keyslots."""
    with SecretBytes.copy_of(KEY) as key:
        if version == 1:
            return Luks1Format(CIPHER, UUID, data_offset=data_offset).written(key)
        return Luks2Format(CIPHER, 512, UUID, data_offset=data_offset, keyslots_size=slots * AREA).written(key)


def adding(passphrase: bytes, number: int | None = None, **options: Any) -> Edit:
    """Return the adding of a keyslot."""

    def edit(header: Header) -> HeaderEdit:
        with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(passphrase) as secret:
            return keyslots.add_keyslot(header, key, secret, new_slot(**options), number=number)[1]

    return edit


def changing(number: int, passphrase: bytes, *, in_place: bool = False, **options: Any) -> Edit:
    """Return the change of a keyslot."""

    def edit(header: Header) -> HeaderEdit:
        with SecretBytes.copy_of(KEY) as key, SecretBytes.copy_of(passphrase) as secret:
            return keyslots.change_keyslot(header, number, key, secret, new_slot(**options), in_place=in_place)

    return edit


def removing(number: int) -> Edit:
    """Return the removal of a keyslot."""
    return lambda header: keyslots.remove_keyslot(header, number)


def after(area: bytes, *edits: Edit) -> bytes:
    """Return a header's bytes after some edits."""
    for edit in edits:
        area = edit(parse_header(area)).applied_to(area)
    return area


def opened(area: bytes, passphrase: bytes, keyslot: int | None = None) -> int | None:
    """Return which keyslot a passphrase opens, None for none; what is in it is the key."""
    header = parse_header(area)
    with SecretBytes.copy_of(passphrase) as secret:
        try:
            found = unlock(header, header.digests[0], secret, keyslot)
        except (WrongKey, NoUsableKeyslot):
            return None
    assert bytes(found.volume_key.view) == KEY
    return found.keyslot


def luks1_with_a_gap() -> bytes:
    """Return a LUKS1 header with the keyslots 0, 3 and 7, and a gap at 1 that was in use."""
    return after(
        empty(1), adding(b"zero"), adding(b"one", salt=1), adding(b"three", 3, salt=3), adding(b"seven", 7, salt=7),
        removing(1),
    )  # fmt: skip


OPENS = {b"zero": 0, b"one": None, b"three": 3, b"seven": 7}
"""Which keyslot of that each secret opens."""


def opens(area: bytes) -> dict[bytes, int | None]:
    """Return which keyslot each of the secrets opens."""
    return {secret: opened(area, secret) for secret in OPENS}
