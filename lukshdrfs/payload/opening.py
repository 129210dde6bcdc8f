"""Whatever a payload is in: a file or device that is opened here, an NBD export, an image that an engine opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from lukshdrfs.errors import UsageError
from lukshdrfs.limits import check_file_size
from lukshdrfs.payload.base import Payload
from lukshdrfs.payload.file import FilePayload
from lukshdrfs.payload.nbd.address import checked_address, is_network
from lukshdrfs.payload.nbd.payload import PATIENCE_S, NbdPayload
from lukshdrfs.payload.new_file import new_payload_file
from lukshdrfs.payload.qemu.payload import EnginePayload

FORMATS = ("raw", "qcow2")


@dataclass(frozen=True, slots=True)
class PayloadName:
    """What somebody calls a payload: enough to know what will open it. Nothing is opened by it."""

    name: str
    """A path, or the address of an NBD export."""
    format: str = "raw"
    backing_chain: bool = False
    """Whether the backing files of an image are opened; of what an image names, nothing else ever is."""

    @property
    def is_plain(self) -> bool:
        """Whether it is a file or block device whose bytes are the payload's."""
        return self.format == "raw" and not is_network(self.name)

    @property
    def is_network(self) -> bool:
        """Whether it is the address of a server."""
        return is_network(self.name)

    def check(self, *, preserve_times: bool = False) -> None:
        """Raise UsageError for a format or an address that is not supported, or for what does not go together."""
        if self.format not in FORMATS:
            raise UsageError(f"payload format {self.format!r} is not supported; expected {' or '.join(FORMATS)}")
        if self.backing_chain and self.format == "raw":
            raise UsageError(
                "--backing-chain is for images that can have backing files; expected --payload-format qcow2"
            )
        if self.is_network:
            checked_address(self.name)
            if self.format != "raw":
                raise UsageError(
                    f"payload {self.name}: an image behind a server is opened by the server (qemu-nbd -f "
                    f"{self.format}), and what it exports is raw"
                )
        if preserve_times and not self.is_plain:
            raise UsageError("--preserve-times is for plain files and devices")


@dataclass(frozen=True, slots=True)
class Access:
    """How a payload is opened."""

    read_only: bool = False
    write_through: bool = False
    """Whether each write is on the storage before it is answered."""
    preserve_times: bool = False
    """Whether a file's times are put back when it is closed."""
    window: tuple[int, int] | None = None
    """Offset and size in bytes of the part of a file or device that is used and locked; None: all of it."""
    patience_s: float = PATIENCE_S
    """How long requests wait for a server that is away, in seconds."""


def open_payload(what: PayloadName, how: Access) -> Payload:
    """
    Open a payload, whatever it is in.

    Raises UsageError for an unknown format, DeviceError if it cannot be opened, InUse if somebody else has it.
    """
    what.check(preserve_times=how.preserve_times)
    if what.is_network:
        return NbdPayload.open(
            what.name, read_only=how.read_only, write_through=how.write_through, patience_s=how.patience_s
        )
    if not what.is_plain:
        return EnginePayload.start(
            what.name,
            what.format,
            read_only=how.read_only,
            write_through=how.write_through,
            patience_s=how.patience_s,
            backing_chain=what.backing_chain,
        )
    payload = FilePayload.open(
        what.name,
        read_only=how.read_only,
        write_through=how.write_through,
        preserve_times=how.preserve_times,
        window=how.window,
    )
    try:
        if payload.is_regular and not payload.read_only:
            check_file_size(f"payload {payload.name}", payload.size if how.window is None else sum(how.window))
    except BaseException:
        payload.close()
        raise
    return payload


@contextlib.contextmanager
def new_payload(what: PayloadName, size: int) -> Iterator[Payload]:
    """
    Make a new file with `size` bytes of payload and open it; if something fails meanwhile, it goes again.

    A raw one is sparse, an image is thin. Raises DeviceError, also if there is something of that name.
    """
    if what.is_plain:
        check_file_size(f"payload {what.name}", size)
        with new_payload_file(what.name, size) as made:
            yield made
        return
    with EnginePayload.create(what.name, what.format, size) as payload:
        try:
            yield payload
        except BaseException:
            payload.image.remove()
            raise
