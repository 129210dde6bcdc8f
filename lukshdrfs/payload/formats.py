"""Whatever a payload is in: a file or device that is opened here, an NBD export, an image that an engine opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lukshdrfs.errors import UsageError
from lukshdrfs.payload.address import checked_address, is_network
from lukshdrfs.payload.engine_payload import EnginePayload
from lukshdrfs.payload.nbd import PATIENCE_S, NbdPayload

FORMATS = ("raw", "qcow2")


def is_plain(name: str, image_format: str = "raw") -> bool:
    """Whether it is a file or block device whose bytes are the payload's."""
    return image_format == "raw" and not is_network(name)


def check_format(name: str, image_format: str, *, backing_chain: bool = False) -> None:
    """Raise UsageError for a format or an address that is not supported; opens nothing."""
    if image_format not in FORMATS:
        raise UsageError(f"payload format {image_format!r} is not supported; expected {' or '.join(FORMATS)}")
    if backing_chain and image_format == "raw":
        raise UsageError("--backing-chain is for images that can have backing files; expected --payload-format qcow2")
    if is_network(name):
        checked_address(name)
        if image_format != "raw":
            raise UsageError(
                f"payload {name}: an image behind a server is opened by the server (qemu-nbd -f {image_format}), and "
                "what it exports is raw"
            )


def open_indirect(
    name: str, image_format: str, *, read_only: bool, write_through: bool = False, patience_s: float = PATIENCE_S,
    backing_chain: bool = False,
) -> NbdPayload:  # fmt: skip
    """
    Open a payload that is not plain; requests wait `patience_s` seconds for a server that is away.

    Of the files that an image names, none is opened but backing files, with `backing_chain`.
    Raises DeviceError if it cannot be opened, InUse if somebody else has it, UsageError for an unknown format.
    """
    check_format(name, image_format)
    if is_network(name):
        return NbdPayload.open(name, read_only=read_only, write_through=write_through, patience_s=patience_s)
    return EnginePayload.start(
        name, image_format, read_only=read_only, write_through=write_through, patience_s=patience_s,
        backing_chain=backing_chain,
    )  # fmt: skip


@contextlib.contextmanager
def create_image(name: str, image_format: str, size: int) -> Iterator[NbdPayload]:
    """
    Make a new file with an image of `size` bytes, thin, and open it; if something fails meanwhile, it goes again.

    Raises DeviceError, also if there is something of that name.
    """
    payload = EnginePayload.create(name, image_format, size)
    with payload:
        try:
            yield payload
        except BaseException:
            payload.image.remove()
            raise
