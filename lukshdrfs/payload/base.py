"""What a payload is to everything above: bytes at offsets, whatever they are kept in."""

from __future__ import annotations

from typing import Protocol, Self


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
    def native(self) -> object | None:
        """The payload as C code has it, a `struct payload` that is good until `close`; None if it has none."""

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

    def fail_waiting(self) -> None:
        """Have what waits for a storage that is away fail with EIO at once, and all that comes, if that can be had."""

    def wait_again(self) -> None:
        """Have requests wait again for a storage that is away."""

    def resize(self, size: int) -> None:
        """Make it `size` bytes long, new ones being zero. Raises PayloadError, with EPERM where that cannot be."""

    def refresh_size(self) -> None:
        """Notice that somebody else has made it longer or shorter."""

    def modified_ns(self) -> int:
        """Return when it was last written to, in nanoseconds since the epoch."""

    def close(self) -> None:
        """Let go of the storage and its locks. May be called again."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
