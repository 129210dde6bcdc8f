"""What is recognisable in a volume's plaintext, by libblkid."""

from __future__ import annotations

from lukshdrfs.payload import known_signature_of
from lukshdrfs.volume.volume import Volume


def plaintext_signature(volume: Volume) -> str:
    """
    Return what the plaintext of a volume holds (`ext4`, `gpt`, …), empty if nothing is recognised.

    Raises PayloadError, and DeviceError if blkid is not installed.
    """
    return known_signature_of(volume.size, volume.read_into)
