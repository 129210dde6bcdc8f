"""
Secrets in the kernel's keyrings, by the description under which somebody put them there.

Sources: keyrings(7), request_key(2), keyctl_read(3); the token type `luks2-keyring`: LUKS2 specification, section 5.1.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Iterator

from lukshdrfs.errors import DeviceError
from lukshdrfs.luks.model import Header
from lukshdrfs.secret import SecretBytes

log = logging.getLogger(__name__)

_LIBRARY = "libkeyutils.so.1"
_KEY_TYPE = b"user"
_KEYRING_TOKEN = "luks2-keyring"  # noqa: S105 - a type's name


def read_key(description: str) -> SecretBytes:
    """
    Return the payload of a key of type `user` that this process may find and read.

    Raises DeviceError if there is none, it cannot be read, or libkeyutils is not installed.
    """
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        raise DeviceError(f"{_LIBRARY} is not installed, by which keyrings are read; install libkeyutils1") from None
    library.keyctl_read.restype = ctypes.c_long
    key = library.request_key(_KEY_TYPE, os.fsencode(description), None, 0)
    size = library.keyctl_read(key, None, 0) if key >= 0 else -1
    if size < 0:
        raise DeviceError(f"key {description!r} in the kernel's keyring: {_reason(ctypes.get_errno())}")
    secret = SecretBytes(size)
    pointer = (ctypes.c_char * max(size, 1)).from_buffer(secret.view) if size else None
    found = library.keyctl_read(key, pointer, ctypes.c_size_t(size))
    del pointer  # nothing may point into the secret when its frame is collected
    if found != size:
        raise DeviceError(f"key {description!r} in the kernel's keyring changed while it was read; try again")
    return secret


def _reason(code: int) -> str:
    if code in (errno.ENOKEY, errno.ENOENT):
        return "there is none; put it there, for instance with 'keyctl padd user DESCRIPTION @u'"
    if code == errno.EACCES:
        return "it may not be read; is the user keyring linked to the session's ('keyctl link @u @s')?"
    return os.strerror(code)


def token_secrets(header: Header) -> Iterator[tuple[SecretBytes, tuple[int, ...]]]:
    """Yield the secrets that the header's keyring tokens name and that are there, with the keyslots they are for."""
    for token in header.tokens:
        description = token.content.get("key_description")
        if token.type != _KEYRING_TOKEN or not isinstance(description, str):
            continue
        try:
            yield read_key(description), token.keyslots
        except DeviceError as error:
            log.info("token %d: %s", token.id, error)
