"""What a payload is to everything above: bytes at offsets, whatever they are kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PayloadFunctions:
    """
    Addresses of C functions that read, write and flush a payload, from any thread.

    Each takes the object first, then, but for `flush`, data, size and offset (bytes), and returns 0 or an errno.
    `write` takes last whether it is synchronous, `flush` whether it was asked for (see Payload). `start` is as
    `nbd_client_start` in nbd_client.h. An address of 0: there is no such function; without `read`, the payload has a
    descriptor.
    """

    payload: int
    read: int
    write: int
    flush: int
    start: int


class Payload(Protocol):
    """
    The ciphertext. Any number of threads may read and write at the same time.

    Every failure of the storage is a PayloadError that carries its errno.
    """

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def size(self) -> int:
        """Bytes, as last known."""

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""

    @property
    def descriptor(self) -> int | None:
        """A file descriptor whose bytes are the payload's, at the same offsets; None if there is none."""

    @property
    def functions(self) -> PayloadFunctions | None:
        """What serves C code, for all but reading where there is a descriptor. Good until `close`."""

    def identity(self) -> tuple[int, int] | None:
        """Return device and inode number, by which two paths to one file are told; None if it is no file here."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer from byte `offset` on. A payload that ends before is a PayloadError."""

    def write(self, data: memoryview, offset: int, *, synchronous: bool = False) -> None:
        """
        Write all of `data` at byte `offset`, which the payload must already reach.

        With `synchronous`, it is on the storage on return; what is raised is its own outcome, whoever else writes.
        """

    def flush(self, *, asked: bool = True) -> None:
        """
        Return when everything written is on the storage itself.

        What was lost by others' synchronous writes and flushes since the last flush that was `asked` for fails the next
        one that is: so all who rely on flushes hear of it.
        """

    def be_patient(self, *, patient: bool) -> None:
        """
        Wait for a storage that is away, or not.

        If not, what waits fails with EIO at once, and so does all that comes; as far as that can be had.
        """

    def resize(self, size: int) -> None:
        """Make it `size` bytes long, new ones being zero. Raises PayloadError, with EPERM where that cannot be."""

    def refresh_size(self) -> None:
        """Notice that somebody else has made it longer or shorter."""

    def modified_ns(self) -> int:
        """Return when it was last written to, in nanoseconds since the epoch."""

    def close(self) -> None:
        """Let go of the storage and its locks. May be called again."""
