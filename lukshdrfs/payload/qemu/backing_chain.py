"""
Images that are made of others: those a qcow2 image names as its backing files, opened here and on request alone.

QEMU would open whatever an image names. Here each file is opened by us, with the rights of the owner of the image that
names it, for reading; QEMU gets the descriptors, and a description of the chain in which no name occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lukshdrfs.errors import DeviceError
from lukshdrfs.payload.qemu.image_file import ImageFile
from lukshdrfs.payload.qemu.qcow2_header import path_of_part, read_qcow2_header

MAX_DEPTH = 64
"""Images in a chain, at most."""

FORMATS = ("raw", "qcow2")


class ForeignParts(DeviceError):  # noqa: N818 - what it has
    """An image names parts outside of itself that are not to be opened; trying again is of no use."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An image and its format."""

    image: ImageFile
    image_format: str


def open_chain(image: ImageFile, image_format: str, *, backing_chain: bool) -> list[Layer]:
    """
    Return the images that one is made of: itself, then its backing file, and so on. Close those behind the first.

    Raises ForeignParts if one names another file and `backing_chain` does not allow that; DeviceError if one cannot be
    opened, or is in a format that is not opened here, or the chain comes back to itself or has no end.
    """
    chain = [Layer(image, image_format)]
    try:
        while chain[-1].image_format == "qcow2":
            below = _backing_file(chain[-1].image, backing_chain=backing_chain)
            if below is None:
                break
            chain.append(below)
            _check_grows(chain)
    except BaseException:
        close_backing_files(chain)
        raise
    return chain


def check_header(chain: Sequence[Layer]) -> None:
    """
    Look at an image once more before it is opened once more; its backing files are those that are open already.

    Raises ForeignParts if it has come to name another file in the meantime.
    """
    if chain[0].image_format == "qcow2":
        _check_no_data_file(chain[0].image)
        if len(chain) == 1:
            _backing_file(chain[0].image, backing_chain=False)


def close_backing_files(chain: Sequence[Layer]) -> None:
    """Let go of all but the first."""
    for layer in chain[1:]:
        layer.image.close()


def _check_no_data_file(image: ImageFile) -> None:
    data_file = read_qcow2_header(image).data_file
    if data_file is not None:
        raise ForeignParts(
            f"payload {image.name} has its data in another file ({data_file or 'without a name'}), which is not "
            "opened; qemu-img convert makes one image of both"
        )


def _backing_file(image: ImageFile, *, backing_chain: bool) -> Layer | None:
    _check_no_data_file(image)
    header = read_qcow2_header(image)
    if header.backing_file is None:
        return None
    if not backing_chain:
        raise ForeignParts(
            f"payload {image.name} has a backing file, {header.backing_file}; such a file is opened with "
            "--backing-chain only (-o backing-chain)"
        )
    if header.backing_format not in FORMATS:
        said = f"in the format {header.backing_format!r}" if header.backing_format else "without its format"
        raise DeviceError(
            f"payload {image.name} names its backing file, {header.backing_file}, {said}; expected "
            f"{' or '.join(FORMATS)}: qemu-img rebase -u -F FORMAT -b {header.backing_file} {image.name}"
        )
    name = path_of_part(image, header.backing_file)
    return Layer(ImageFile.open_as_owner_of(image, name), header.backing_format)


def _check_grows(chain: Sequence[Layer]) -> None:
    """Raise DeviceError for a chain that comes back to itself, or is too long."""
    name = chain[0].image.name
    if len({layer.image.identity() for layer in chain}) < len(chain):
        raise DeviceError(f"payload {name} is a backing file of itself, by {chain[-1].image.name}")
    if len(chain) > MAX_DEPTH:
        raise DeviceError(f"payload {name} is made of more than {MAX_DEPTH} images; qemu-img convert makes one of them")
