"""What is said of a volume whose payload somebody else has made shorter or longer while it was not mounted."""

from __future__ import annotations

import logging
import shlex

from lukshdrfs.errors import LukshdrfsError
from lukshdrfs.recognition.claimed_size import claimed_size
from lukshdrfs.volume import Volume

log = logging.getLogger(__name__)


def warn_of_changed_size(volume: Volume, payload: str, image: str) -> None:
    """Warn if what is on the volume is longer than it, or if the payload's end is a hole; with the way out."""
    try:
        claimed = claimed_size(volume.pread)
        unwritten = 0 if volume.read_only else volume.unwritten_end()
    except LukshdrfsError as error:  # who reads it will hear of it again
        log.warning("%s", error)
        return
    if claimed and claimed[1] > volume.size:
        log.warning(
            "payload %s is too short: the %s on it takes %d bytes, and the volume has %d; it was cut off, or it is not "
            "the whole of it. Write nothing to it before you know; a payload with its end is mounted as it was",
            payload, claimed[0], claimed[1], volume.size,
        )  # fmt: skip
    if unwritten:
        start = volume.size - unwritten
        log.warning(
            "payload %s: its last %d bytes have never been written, as of a file that was made longer by truncate: "
            "they read as random bytes, and show that they are unused. To fill them with zeros: "
            "dd if=/dev/zero of=%s bs=1M iflag=count_bytes oflag=seek_bytes seek=%d count=%d conv=notrunc,fsync; "
            "'lukshdrfs resize' makes a volume longer and does it all",
            payload, unwritten, shlex.quote(image), start, unwritten,
        )  # fmt: skip
