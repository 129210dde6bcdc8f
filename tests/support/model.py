"""Writes of any offset and length, and what they must come to."""

from __future__ import annotations

import random
from collections.abc import Callable


def scattered_writes(rng: random.Random, size: int, count: int = 60) -> list[tuple[int, bytes]]:
    """Return writes inside `size` bytes: within one sector, over many, and at sectors' very edges."""
    writes = []
    for _ in range(count):
        length = min(size, rng.choice([1, 7, 511, 512, 513, 4095, 4096, 4097, 20000, rng.randrange(1, 70000)]))
        offset = rng.randrange(size - length + 1)
        if rng.random() < 0.3:
            offset -= offset % 4096
        writes.append((offset, rng.randbytes(length)))
    return [*writes, (0, rng.randbytes(3)), (size - 5, rng.randbytes(5))]


def apply(writes: list[tuple[int, bytes]], model: bytearray, write: Callable[[int, bytes], object]) -> None:
    """Write everything to the model and to the real thing."""
    for offset, data in writes:
        model[offset : offset + len(data)] = data
        write(offset, data)
