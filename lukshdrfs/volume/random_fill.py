"""Filling a payload with what cannot be told from ciphertext, so that used and unused sectors look alike."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.payload import Payload
from lukshdrfs.secret import SecretBytes

_STEP = 4 * 1024 * 1024
_STEPS_PER_FLUSH = 64
"""So often that the progress shown is the storage's, not the page cache's."""
_SECTOR = 4096


def fill_with_random(
    payload: Payload, offset: int, size: int, progress: Callable[[int], None] = lambda _done: None
) -> None:
    """
    Write `size` random bytes at byte `offset`, and flush. `progress` hears how many bytes are written.

    They are zeros that are encrypted under a random key which nobody keeps, sector by sector: what dm-crypt would
    store, and several times as fast as the kernel's random numbers. Raises PayloadError.
    """
    with (
        SecretBytes.random(64) as key,
        SectorCipher(CipherSpec.parse("aes-xts-plain64"), key, _SECTOR) as cipher,
    ):
        # never closed: a write that fails or is interrupted still has its part of it while the error goes up
        buffer = memoryview(mmap.mmap(-1, _STEP))
        for number, done in enumerate(range(0, size, _STEP)):
            # what is in the buffer is encrypted again, under other sector numbers: no zeros are needed for it
            cipher.encrypt(buffer, done >> 9)
            payload.write(buffer[: min(_STEP, size - done)], offset + done)
            if number % _STEPS_PER_FLUSH == _STEPS_PER_FLUSH - 1:
                payload.flush()
            progress(min(size, done + _STEP))
    payload.flush()
