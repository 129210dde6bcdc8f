"""
What a step that was cut off has left, brought to its end.

Source: cryptsetup, lib/luks2/luks2_reencrypt.c (`reencrypt_recover_segment`); LUKS2 On-Disk Format 1.1.4, section 4.9.
A zone may be a gigabyte: it is gone through piece by piece.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from lukshdrfs.cipher import gcrypt_hash_blocks
from lukshdrfs.errors import HeaderError
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.luks2.reencryption.state import Part, ReencryptionState, Side
from lukshdrfs.sectors import round_down
from lukshdrfs.volume.moving.sides import Sides
from lukshdrfs.volume.moving.zone import Zone, done

log = logging.getLogger(__name__)

_PIECE = 1 << 20
"""Bytes that are recovered at a time; whole blocks of any checksum."""


class HotZone:
    """The zone that a step was cut off in, as it will be once it is recovered."""

    def __init__(
        self, sides: Sides, state: ReencryptionState, size: int, read_area: Callable[[int, int], bytes]
    ) -> None:
        """`size` is the plaintext's; `read_area` returns bytes of the header, by offset and size."""
        hot = state.hot
        assert hot is not None
        assert hot.size is not None
        self._sides = sides
        self._state = state
        self._read_area = read_area
        self._part = hot
        self._source = _source_side(state, hot)
        self.start = hot.start
        self.end = hot.start + hot.size
        if self.end > size:
            raise HeaderError("the header's reencryption is at a place that the payload does not have")

    @property
    def zone(self) -> Zone:
        """The zone as its step took it."""
        return Zone(self._source, self.start, self.end)

    @property
    def place(self) -> int:
        """First byte of it on the payload, as it will be."""
        return self._sides.place(self._state, Side.NEW, self.start)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield where pieces of it begin and end, on the volume."""
        for start in range(self.start, self.end, _PIECE):
            yield start, min(self.end, start + _PIECE)

    def recovered(self, start: int, end: int) -> memoryview:
        """Return the new ciphertext of a piece, which begins and ends where `pieces` do. Raises PayloadError."""
        protection, data = self._state.protection, memoryview(bytearray(end - start))
        old_place = self._sides.place(self._state, self._source, start)
        if old_place != self._sides.place(self._state, Side.NEW, start):
            self._sides.payload.read_into(data, old_place)  # nothing was written there in this step
        elif protection.in_place == "journal":
            data[:] = self._read_area(protection.offset + start - self.start, len(data))
        else:
            self._sides.payload.read_into(data, self._sides.place(self._state, Side.NEW, start))
            self._reencrypt_old_blocks(data, start)
            return data
        self._sides.reencrypt(self._state, data, start)
        return data

    def _reencrypt_old_blocks(self, data: memoryview, start: int) -> None:
        """Convert the blocks whose checksums are those from before the step; all others have been written already."""
        protection = self._state.protection
        block, digest = protection.block_size, find_hash(protection.hash)
        whole = round_down(len(data), block)
        if whole < len(data):
            log.warning("the volume's last %d bytes have no checksum; they are taken for converted", len(data) - whole)
        at = protection.offset + (start - self.start) // block * digest.digest_size
        before = self._read_area(at, whole // block * digest.digest_size)
        now = gcrypt_hash_blocks(digest.gcrypt, data[:whole], block)
        for number in range(whole // block):
            here = slice(number * digest.digest_size, (number + 1) * digest.digest_size)
            if now[here] == before[here]:
                first = number * block
                self._sides.reencrypt(self._state, data[first : first + block], start + first)


def _source_side(state: ReencryptionState, hot: Part) -> Side:
    """Return where the zone's data came from: the last step of a data shift takes what was moved at its beginning."""
    return Side.MOVED if state.moved is not None and hot.start == 0 else Side.OLD


def recover(sides: Sides, header: LiveHeader, state: ReencryptionState, size: int) -> ReencryptionState:
    """
    Bring the step that was cut off to its end, and say so in the header; return the state afterwards.

    It may be cut off as well, and done again. Raises PayloadError, InUse.
    """
    zone = HotZone(sides, state, size, header.read_area)
    log.info("recovering bytes %d to %d of the volume, where a conversion was cut off", zone.start, zone.end)
    for start, end in zone.pieces():
        sides.payload.write(zone.recovered(start, end), zone.place + start - zone.start)
    sides.payload.flush()
    return done(header, state, size, zone.zone)
