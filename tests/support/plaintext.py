"""
The plaintext of the golden volumes: nothing but a seed and SHA-256.

Sector i of 512 bytes is, for j = 0..15, SHA-256 of f"{seed}:{i}:{j}" in UTF-8, joined.
"""

from __future__ import annotations

import hashlib

SECTOR = 512


def sector(seed: str, index: int) -> bytes:
    """Return sector `index`."""
    return b"".join(hashlib.sha256(f"{seed}:{index}:{part}".encode()).digest() for part in range(16))


def plaintext(seed: str, size: int) -> bytes:
    """Return the first `size` bytes."""
    return b"".join(sector(seed, index) for index in range(-(-size // SECTOR)))[:size]
