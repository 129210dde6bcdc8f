"""
Refusing to truncate the image, in words that the caller's own errno has no room for.

The image is a regular file by type and a block device by behaviour: it keeps its size, and its old content is there
until it is overwritten. Whoever truncates a file first, as `cp` does, takes it for granted that what is not written
afterwards reads as zeros, and leaves out the zeros of a sparse file.
"""

from __future__ import annotations

import errno
import logging
from typing import NoReturn

import pyfuse3

log = logging.getLogger(__name__)

WAYS = "'dd conv=notrunc,fsync', 'qemu-img convert -n' and 'rsync --inplace --ignore-times' write without truncating"


def refuse_opening(image: str) -> NoReturn:
    """Raise the FUSEError for an open with O_TRUNC, and log the way out."""
    log.warning(
        "%s was to be emptied by opening it (O_TRUNC, as cp, tee and a shell's > do), which is refused: it keeps its "
        "size like a disk. %s; with '--truncate ignore' such programs overwrite what is there ('cp --sparse=never')",
        image,
        WAYS,
    )
    raise pyfuse3.FUSEError(errno.EPERM)


def refuse_size(image: str, wanted: int, size: int) -> NoReturn:
    """Raise the FUSEError for a size in bytes that is not to be had, and log the way out."""
    way = f"to be truncated to {wanted} of its {size} bytes, which is refused: it keeps its size like a disk. {WAYS}"
    if wanted > size:
        way = f"to get {wanted} bytes, and has {size}: 'lukshdrfs resize' makes the volume longer"
    log.warning("%s was %s", image, way)
    raise pyfuse3.FUSEError(errno.EPERM)
