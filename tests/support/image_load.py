"""A load on a mounted image that knows what has to be there after a crash."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 4096


class Load:
    """Writes blocks through the image, direct and cached, syncs some, and knows what has to be there."""

    def __init__(self, image: Path, plain: bytes, rng: random.Random) -> None:
        self._image = image
        self._rng = rng
        self._size = len(plain) // BLOCK
        self._before = plain
        self.synced: dict[int, bytes] = {}
        """What each block was written with, and synced, last."""
        self.later: dict[int, list[bytes]] = {}
        """What was written since."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.count = 0

    def _write(self) -> None:
        try:
            buffered, direct = (os.open(self._image, os.O_RDWR | flag) for flag in (0, os.O_DIRECT))
            with mmap.mmap(-1, BLOCK) as page:
                while not self._ending.is_set():
                    block = self._rng.randrange(self._size)
                    data = self._rng.randbytes(BLOCK)
                    self.later.setdefault(block, []).append(data)
                    if self._rng.random() < 0.5:
                        page[:] = data
                        os.pwritev(direct, [page], block * BLOCK)
                    else:
                        os.pwrite(buffered, data, block * BLOCK)
                    if self._rng.random() < 0.2:
                        os.fsync(buffered)
                        self.synced |= {number: versions[-1] for number, versions in self.later.items()}
                        self.later = {}
                    self.count += 1
            os.close(buffered)
            os.close(direct)
        except OSError:
            if not self._ending.is_set():
                raise

    def end(self) -> None:
        """Let writes fail from now on."""
        self._ending.set()

    def missing(self, found: bytes) -> list[int]:
        """Return the blocks that are neither as they were last synced nor as they were written later."""
        wrong = []
        for number in range(self._size):
            here = found[number * BLOCK : (number + 1) * BLOCK]
            known = self.synced.get(number, self._before[number * BLOCK : (number + 1) * BLOCK])
            if here != known and here not in self.later.get(number, []):
                wrong.append(number)
        return wrong

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write in the background."""
        self._thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._thread.join()
