"""What is recognisable in a volume's plaintext, by libblkid."""

from __future__ import annotations

import os

from lukshdrfs.payload import known_signature
from lukshdrfs.volume.volume import Volume

_START, _END = 1 << 20, 1 << 20
"""Bytes at both ends that have all the superblocks and partition tables that libblkid looks for, but rare ones."""


def plaintext_signature(volume: Volume) -> str:
    """
    Return what the plaintext of a volume holds (`ext4`, `gpt`, …), empty if nothing is recognised.

    libblkid looks at a copy of both ends, in memory that is gone afterwards. Raises PayloadError, and DeviceError if
    blkid is not installed.
    """
    copy = os.memfd_create("plaintext", os.MFD_CLOEXEC)
    try:
        os.truncate(copy, volume.size)
        tail = max(0, volume.size - _END)
        os.pwrite(copy, volume.pread(_START, 0), 0)
        os.pwrite(copy, volume.pread(_END, tail), tail)
        return known_signature(f"/proc/self/fd/{copy}", pass_descriptor=copy)
    finally:
        os.close(copy)
