"""Sizes and alignments of a LUKS2 header."""

from __future__ import annotations

BINARY_SIZE = 4096
"""Bytes of the binary header before the JSON area (LUKS2 specification, table 1)."""


METADATA_SIZES = tuple(16 * 1024 << n for n in range(9))
"""Legal sizes in bytes of one copy: binary header and JSON area (16 KiB to 4 MiB; `LUKS2_HDR2_OFFSETS`)."""


MAX_KEYSLOTS_SIZE = 128 * 1024 * 1024
"""Bytes (`LUKS2_MAX_KEYSLOTS_SIZE`)."""


METADATA_SIZE = 16 * 1024


KEYSLOTS_SIZE = 16 * 1024 * 1024 - 2 * METADATA_SIZE


LABEL_SIZE = 47
"""Most bytes of a label or subsystem (48, the last one a NUL)."""
