"""What C code needs to do by itself what Volume does: the same extents, the same ciphers, the same locks."""

from __future__ import annotations

from dataclasses import dataclass

from lukshdrfs.cipher import sector_cipher
from lukshdrfs.payload import PayloadFunctions
from lukshdrfs.volume import sector_locks


@dataclass(frozen=True, slots=True)
class DirectExtent:
    """An extent (see `lukshdrfs.volume.Extent`); its cipher is the C object's address, 0 for none."""

    start: int
    size: int
    payload_offset: int
    iv_tweak: int
    sector_size: int
    cipher: int


@dataclass(frozen=True, slots=True)
class DirectAccess:
    """Addresses and descriptors that are good as long as the volume is open."""

    descriptor: int | None
    """Of the payload."""
    functions: PayloadFunctions | None
    """What serves where the payload has no descriptor."""
    read_only: bool
    extents: tuple[DirectExtent, ...]
    locks: int
    """Address of the C object."""

    @property
    def crypt(self) -> int:
        """Address of `sector_cipher_crypt`."""
        return sector_cipher.c_function()

    @property
    def lock_functions(self) -> dict[str, int]:
        """Addresses of `sector_locks_hold`, `sector_locks_try` and `sector_locks_release`."""
        return sector_locks.c_functions()
