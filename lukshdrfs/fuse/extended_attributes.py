"""
The image's extended attributes: what the volume and the mount are, for programs.

There is the name space `user`, and in it what is shown here. The others (`trusted`, `security`, `system`) are not kept,
which is another answer than that a name in them is not there: programs such as libvirt go on without them then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import pyfuse3

from lukshdrfs.mounts import PROPERTY_PREFIX

_KEPT = b"user."


class ExtendedAttributes:
    """Names and values, to be read and not to be changed."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        """Show these."""
        self._values: dict[bytes, bytes] = {}
        for name, value in properties.items():
            self.show(name, value)

    def show(self, name: str, value: str) -> None:
        """Show something under a name, which is without the prefix."""
        self._values[os.fsencode(PROPERTY_PREFIX + name)] = value.encode("utf-8", "surrogateescape")

    def names(self) -> list[bytes]:
        """Return all names."""
        return [*self._values]

    def value(self, name: bytes) -> bytes:
        """Return the value of a name. Raises FUSEError: ENODATA if it is not there, EOPNOTSUPP in other name spaces."""
        if not name.startswith(_KEPT):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if name not in self._values:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return self._values[name]

    def refuse_change(self, name: bytes, *, removing: bool = False) -> None:
        """Raise the FUSEError that a change is answered with."""
        if removing:
            self.value(name)
        raise pyfuse3.FUSEError(errno.EPERM if name.startswith(_KEPT) else errno.EOPNOTSUPP)


NONE = ExtendedAttributes({})
"""Those of the directory."""
