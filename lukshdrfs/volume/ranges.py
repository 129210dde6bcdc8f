"""
Ranges of plaintext, read and written as the whole sectors around them.

In Python, read-modify-write is done here and nowhere else; native_volume.c does the same in C, under the same locks.
"""

from __future__ import annotations

from lukshdrfs.errors import PayloadError
from lukshdrfs.payload import Payload
from lukshdrfs.volume.extents import ExtentMap, Piece
from lukshdrfs.volume.sector_locks import SectorLocks


class Ranges:
    """Reads and writes of any thread, each under the lock of its range."""

    def __init__(self, payload: Payload, extents: ExtentMap, locks: SectorLocks) -> None:
        """Put them together; all three stay the caller's."""
        self._payload = payload
        self._map = extents
        self._locks = locks

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer, which is not empty, from byte `offset` on. Raises PayloadError."""
        end = offset + len(buffer)
        with self._locks.hold(*self._map.widened(offset, end), exclusive=False):
            # only now: while this thread waited, a border between two extents may have moved
            pieces = list(self._map.pieces(offset, end))
            fetched = [self._fetch(piece, buffer[piece.start - offset : piece.end - offset]) for piece in pieces]
        for piece, sectors in zip(pieces, fetched, strict=True):
            piece.decrypt(sectors)
            span = piece.span
            if span.covered_size != span.size:
                buffer[piece.start - offset : piece.end - offset] = sectors[span.skip : span.skip + span.size]

    def _fetch(self, piece: Piece, part: memoryview) -> memoryview:
        """Return a piece's ciphertext, in its part of the buffer where that is whole sectors."""
        _check_served(piece)
        whole = piece.span.covered_size == len(part)
        sectors = part if whole else memoryview(bytearray(piece.span.covered_size))
        self._payload.read_into(sectors, piece.place_of(0))
        return sectors

    def write(self, data: memoryview, offset: int, *, synchronous: bool) -> None:
        """Write at byte `offset`; with `synchronous`, it is on the storage on return. Raises PayloadError."""
        end = offset + len(data)
        with self._locks.hold(*self._map.widened(offset, end), exclusive=True):
            for piece in self._map.pieces(offset, end):  # only now, as for reading
                _check_served(piece)
                span = piece.span
                sectors = memoryview(bytearray(span.covered_size))
                self._fetch_partial_sectors(piece, sectors)
                sectors[span.skip : span.skip + span.size] = data[piece.start - offset : piece.end - offset]
                piece.encrypt(sectors)
                self._payload.write(sectors, piece.place_of(0), synchronous=synchronous)

    def _fetch_partial_sectors(self, piece: Piece, sectors: memoryview) -> None:
        """Put the plaintext of the sectors that are only partly written in their places."""
        unit, span = piece.extent.sector_size, piece.span
        wanted = {0} if span.partial_head else set()
        if span.partial_tail:
            wanted.add(span.covered_size - unit)
        for at in wanted:
            sector = sectors[at : at + unit]
            self._payload.read_into(sector, piece.place_of(at))
            piece.decrypt(sector, at)


def _check_served(piece: Piece) -> None:
    if piece.extent.error:
        raise PayloadError(f"byte {piece.start} is in the zone of a conversion that has failed", piece.extent.error)
