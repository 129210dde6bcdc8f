"""What a header is held to, beside what it says itself: the volume that is expected."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from lukshdrfs.errors import HeaderError
from lukshdrfs.luks.model import Header


@dataclass(frozen=True, slots=True)
class HeaderPin:
    """What a header must be, decided by somebody who knows it. Any other one is refused before it is used."""

    sha256: str = ""
    """Hexadecimal digest of the whole header file; empty for any."""
    uuid: str = ""
    """Empty for any."""

    def check_bytes(self, data: bytes, name: str) -> None:
        """Raise HeaderError unless the header file's content is the pinned one."""
        found = hashlib.sha256(data).hexdigest()
        if self.sha256 and not hmac.compare_digest(found.encode(), self.sha256.lower().encode()):
            raise HeaderError(f"header {name} is not the pinned one: its SHA-256 is {found}")

    def check_uuid(self, header: Header, name: str) -> None:
        """Raise HeaderError unless the header's UUID is the pinned one."""
        if self.uuid and header.uuid.lower() != self.uuid.lower():
            raise HeaderError(f"header {name} is not the pinned one: its UUID is {header.uuid}")
