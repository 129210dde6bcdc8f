"""New images, by qemu-img, which can open nothing but the file that was made for it."""

from __future__ import annotations

from lukshdrfs.errors import DeviceError
from lukshdrfs.payload.qemu.confined_process import FIRST_DESCRIPTOR, ConfinedProcess, find_program
from lukshdrfs.payload.qemu.image_file import ImageFile

_PROGRAM = "qemu-img"


def write_empty_image(image: ImageFile, image_format: str, size: int) -> None:
    """Make an image of `size` bytes with nothing in it, in a file. Raises DeviceError with qemu-img's own words."""
    path = f"/proc/self/fd/{FIRST_DESCRIPTOR}"
    process = ConfinedProcess(
        find_program(_PROGRAM, "qemu-utils"),
        ["create", "-q", "-f", image_format, "--", path, str(size)],
        [(image.descriptor, image.access)],
        owner=image.owner,
    )
    try:
        failed = process.wait()
        said = process.said() or [process.end_words()]
    except BaseException:
        process.kill()  # it may still be at work
        raise
    finally:
        process.close()
    if failed:
        reason = said[-1].removeprefix(f"{_PROGRAM}: ").removeprefix(f"{path}: ").replace(path, image.name)
        raise DeviceError(f"payload {image.name}: {reason}")
