"""
A payload behind an NBD server, through libnbd.

nbd/client.c does the work, for this class and for the fast lane's threads alike: several connections where the server
keeps them in step, commands of any number of threads at once, a server that goes away and comes back.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from types import MappingProxyType
from typing import Self

from lukshdrfs.errors import DeviceError, PayloadError, ReadOnlyError
from lukshdrfs.native import ffi, lib
from lukshdrfs.payload.nbd.address import checked_address

log = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""How long a request waits for a server that is away, or does not answer, before it fails with EIO."""

CONNECTIONS = 4
KEPT_SIZE = 32 << 20
"""Bytes of acknowledged writes that are kept until they are flushed, at most."""

_WORDS_SIZE = 512
_EVENTS = MappingProxyType({
    lib.NBD_CLIENT_LOST: (logging.WARNING, "payload {name}: the connection is lost; connecting again"),
    lib.NBD_CLIENT_GIVEN_UP: (logging.ERROR, "payload {name}: requests fail, for nobody answers: {words}"),
    lib.NBD_CLIENT_BACK: (logging.WARNING, "payload {name}: connected again; {words} bytes were written once more"),
    lib.NBD_CLIENT_REFUSED: (logging.ERROR, "payload {name}: what had been acknowledged is lost: {words}"),
    lib.NBD_CLIENT_FAILED: (logging.ERROR, "payload {name}: flushing: {words}"),
})  # fmt: skip


@ffi.def_extern()  # type: ignore[untyped-decorator]
def nbd_client_event(context: object, event: int, detail: object) -> None:
    """Log an event of a client's, from whatever thread; its context is the payload's name."""
    level, message = _EVENTS[event]
    name = ffi.string(ffi.cast("char *", context)).decode(errors="replace")
    log.log(level, "%s", message.format(name=name, words=ffi.string(detail).decode(errors="replace")))


class NbdPayload:
    """An export of an NBD server. What is on it is locked by nobody: the protocol has no locks."""

    def __init__(self, client: object, name: str, kept: object, *, read_only: bool) -> None:
        """Take over a connected client; use `NbdPayload.open`."""
        self._client = client
        self._name = name
        self._kept = kept  # memory that the client points to
        self._read_only = read_only
        self._written_ns = time.time_ns()

    @classmethod
    def open(
        cls, address: str, *, read_only: bool, write_through: bool = False, name: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Self:  # fmt: skip
        """
        Connect to `nbd://host[:port]/export` or `nbd+unix:///export?socket=PATH` (with `nbds`, over TLS).

        With `write_through`, each write is on the server's storage when it returns. `name` is what the user calls it.
        Requests wait `patience_s` seconds for a server that is away.
        Raises DeviceError if libnbd is not installed, nobody answers or the export is read-only; UsageError if the
        address is none.
        """
        name = name or address
        kept_name, kept_address = (
            ffi.new("char[]", os.fsencode(name)),
            ffi.new("char[]", checked_address(address).encode()),
        )
        configuration = ffi.new("struct nbd_client_config *", {
            "uri": kept_address, "read_only": read_only, "write_through": write_through,
            "connections": CONNECTIONS, "patience_ms": int(patience_s * 1000), "kept_size": KEPT_SIZE,
            "on_event": lib.nbd_client_event, "context": kept_name,
        })  # fmt: skip
        trouble, words = ffi.new("int *"), ffi.new("char[]", _WORDS_SIZE)
        client = lib.nbd_client_open(configuration, trouble, words, _WORDS_SIZE)
        if client == ffi.NULL:
            raise _refusal(name, trouble[0], ffi.string(words).decode(errors="replace"))
        if not read_only and not lib.nbd_client_can_flush(client):
            log.warning("payload %s: the server cannot flush; an fsync says nothing of its storage", name)
        return cls(client, name, kept_name, read_only=read_only)

    @property
    def name(self) -> str:
        """See Payload."""
        return self._name

    @property
    def size(self) -> int:
        """See Payload."""
        return int(lib.nbd_client_size(self._opened()))

    @property
    def read_only(self) -> bool:
        """See Payload."""
        return self._read_only

    @property
    def descriptor(self) -> None:
        """See Payload. There is none."""
        return

    @property
    def native(self) -> object:
        """See Payload."""
        return lib.nbd_client_payload(self._opened())

    @property
    def connections(self) -> int:
        """How many connections there are: several where the server says that a flush of one is good for all."""
        return int(lib.nbd_client_connections(self._opened()))

    @property
    def unflushed(self) -> int:
        """Bytes of acknowledged writes that are kept until a flush."""
        return int(lib.nbd_client_unflushed(self._opened()))

    def identity(self) -> None:
        """See Payload."""
        return

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Payload."""
        if offset + len(buffer) > self.size:
            raise PayloadError(f"payload {self._name} ends at byte {self.size}")
        if buffer:
            with ffi.from_buffer("uint8_t[]", buffer, require_writable=True) as data:  # see `_check`
                error = lib.nbd_client_read(self._opened(), data, len(buffer), offset)
            self._check(error, "reading", offset)

    def write(self, data: memoryview, offset: int, *, synchronous: bool = False) -> None:
        """See Payload."""
        if self._read_only:
            raise ReadOnlyError(f"payload {self._name} is open for reading only")
        if data:
            with ffi.from_buffer("uint8_t[]", data) as sectors:
                error = lib.nbd_client_write(self._opened(), sectors, len(data), offset, synchronous)
            self._check(error, "writing", offset)
            self._written_ns = time.time_ns()

    def flush(self, *, asked: bool = True) -> None:
        """See Payload."""
        if not self._read_only:
            self._check(lib.nbd_client_flush(self._opened(), asked), "flushing", 0)

    def fail_waiting(self) -> None:
        """See Payload. What was acknowledged stays kept."""
        lib.nbd_client_fail_waiting(self._opened())

    def wait_again(self) -> None:
        """See Payload."""
        lib.nbd_client_wait_again(self._opened())

    def resize(self, size: int) -> None:
        """See Payload. NBD has no command for it."""
        raise PayloadError(f"payload {self._name} cannot be made {size} bytes long over NBD", errno.EPERM)

    def refresh_size(self) -> None:
        """See Payload."""
        self._check(lib.nbd_client_refresh(self._opened()), "asking for its size", 0)

    def modified_ns(self) -> int:
        """See Payload. As far as it is known here: NBD has no such time."""
        return self._written_ns

    def close(self) -> None:
        """See Payload."""
        client, self._client = self._client, ffi.NULL
        if client != ffi.NULL:
            lib.nbd_client_close(client)

    def _opened(self) -> object:
        if self._client == ffi.NULL:
            raise PayloadError(f"payload {self._name} is closed", errno.EBADF)
        return self._client

    def _check(self, error: int, doing: str, offset: int) -> None:
        """
        Raise PayloadError for an errno. Nothing may refer to a buffer's memory any more.

        The exception keeps the frames that it went through, in a cycle as likely as not; a memoryview of which there
        are exports cannot be collected from a cycle: CPython 3.11 says so, and crashes later.
        """
        if error:
            raise PayloadError(f"payload {self._name}: {doing} at byte {offset}: {os.strerror(error)}", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _refusal(name: str, trouble: int, words: str) -> DeviceError:
    """Return what to raise for a client that could not be opened."""
    if trouble == lib.NBD_CLIENT_NO_LIBRARY:
        return DeviceError(
            f"payload {name}: libnbd is not installed, by which NBD servers are reached; install libnbd0"
        )
    if trouble == lib.NBD_CLIENT_READ_ONLY:
        return DeviceError(f"payload {name} cannot be written to; use --read-only")
    if trouble == lib.NBD_CLIENT_NO_MEMORY:
        return DeviceError(f"payload {name}: not enough memory")
    reason = words.removeprefix("nbd_aio_connect_uri: ").removeprefix("nbd_aio_notify_read: ")
    return DeviceError(f"payload {name}: {reason}")
