"""
The error tree: what went wrong in one line, the program's exit code and the errno of a request.

Every error that a user can meet is one of these. Its message names the thing, what is wrong with it
and, where there is one, the way out. The exit codes are cryptsetup's (`translate_errno` in its src/utils_tools.c).

* LukshdrfsError (1)
    + UsageError (1): arguments that make no sense together
    + NoUsableKeyslot (1): there is no keyslot that this secret could open
    + WrongKey (2): no key opens the volume
    + OutOfMemory (3): the key derivation needs more memory than there is
    + DeviceError (4): a missing or wrong device, file, mountpoint or program
        - PayloadError (4): the payload does not do what it was asked to; carries the storage's errno
        - ReadOnlyError (4): a write to what is open for reading only
    + HeaderError (4): the header is damaged or is not one
        - NoHeader (4): there is nothing of a LUKS header
        - KeyslotError (4): one keyslot is damaged; others may work
        - UnsupportedFeature (4): sound, but it asks for something that is not implemented
    + InUse (5): somebody else has it
"""

from __future__ import annotations

import errno


class LukshdrfsError(Exception):
    """Base of all errors raised on purpose; `str()` is the line for the user."""

    exit_code: int = 1
    """Exit status of the program."""

    errno: int = errno.EIO
    """What a file system request that meets this error is answered with."""


class UsageError(LukshdrfsError):
    """Arguments that make no sense, alone or together."""

    errno = errno.EINVAL


class NoUsableKeyslot(LukshdrfsError):  # noqa: N818 - the field's own words, as cryptsetup says it
    """No keyslot of the header may be tried, or the secret opens one that holds another key."""

    errno = errno.EACCES


class WrongKey(LukshdrfsError):  # noqa: N818 - the field's own words
    """No key opens the volume: a wrong passphrase, or a volume key that does not fit the digest."""

    exit_code = 2
    errno = errno.EACCES


class OutOfMemory(LukshdrfsError):  # noqa: N818 - the field's own words
    """The key derivation needs more memory than there is."""

    exit_code = 3
    errno = errno.ENOMEM


class DeviceError(LukshdrfsError):
    """A missing or wrong device, file, mountpoint or program."""

    exit_code = 4


class PayloadError(DeviceError):
    """The payload's storage failed; `errno` is what it answered."""

    def __init__(self, message: str, errno_: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = errno_


class ReadOnlyError(DeviceError):
    """A write to a volume that is open for reading only."""

    errno = errno.EROFS


class HeaderError(LukshdrfsError):
    """The header cannot be trusted: damaged, cut off, or none at all."""

    exit_code = 4


class NoHeader(HeaderError):  # noqa: N818 - says what is the matter
    """There is nothing of a LUKS header where one was looked for."""

    def __init__(self, message: str, recognised: str = "") -> None:
        """Take what libblkid or our own list recognises in its place."""
        super().__init__(message)
        self.recognised = recognised
        """What else is there, empty if nothing is recognised."""


class KeyslotError(HeaderError):
    """One keyslot is damaged. The header's other keyslots may still open the volume."""


class UnsupportedFeature(HeaderError):  # noqa: N818 - says what it is
    """The header is sound, but it asks for something that is not implemented here."""


class InUse(LukshdrfsError):  # noqa: N818 - the field's own words
    """Somebody else has the payload, the header or the mountpoint."""

    exit_code = 5
    errno = errno.EBUSY
