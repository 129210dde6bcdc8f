"""A conversion from where it is to its end: recovered first, then zone by zone; it can be ended between two of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.luks.luks2.reencryption.edits import step_parts
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Side, Stage
from lukshdrfs.volume.half_converted import Keys
from lukshdrfs.volume.moving.beginning import Resilience, changed_protection
from lukshdrfs.volume.moving.recovery import recover
from lukshdrfs.volume.moving.sides import Sides
from lukshdrfs.volume.moving.zone import LARGEST_ZONE, Prepared, finish, next_zone, prepare, write

ZONE = 16 << 20
"""Bytes that a step converts unless it is told otherwise: its four syncs are then a small part of its time."""


_AHEAD = 2
"""Zones that are read while one is written: checksums take a processor more time than all else."""


class Reencryption:
    """The conversion of a volume that nobody uses meanwhile."""

    def __init__(
        self, sides: Sides, header: LiveHeader, state: ReencryptionState, size: int, zone_size: int | None = None
    ) -> None:
        """`size` is the plaintext's, `zone_size` how much a step converts at most, both in bytes."""
        self._sides = sides
        self._header = header
        self._state = state
        self._size = size
        self._limit = min(zone_size or ZONE, LARGEST_ZONE)

    @property
    def done(self) -> int:
        """Bytes of plaintext that are converted."""
        return self._state.converted(self._size)

    @property
    def state(self) -> ReencryptionState:
        """How far it has come."""
        return self._state

    def protect(self, resilience: Resilience, keys: Keys) -> None:
        """Protect the steps to come otherwise. Nothing may be cut off. Raises HeaderError, InUse, PayloadError."""
        metadata, state = changed_protection(self._state, self._header.metadata, keys, resilience)
        self._header.commit(metadata)
        self._state = state

    def recover(self) -> bool:
        """
        Bring to its end what was cut off, and what is finished; return whether the conversion is over.

        Raises PayloadError, InUse.
        """
        if self._state.stage is Stage.CRASHED:
            self._state = recover(self._sides, self._header, self._state, self._size)
            return self._state.stage is Stage.FINISHED
        if self._state.stage is Stage.FINISHED:
            finish(self._header, self._state)
            return True
        return False

    def run(self, go_on: Callable[[int], bool]) -> bool:
        """
        Convert zone after zone; return True when all is converted, False once `go_on` says so between two zones.

        It is called with the bytes of plaintext that are converted, before each zone. The zone after the one that is
        being written is read meanwhile. Raises PayloadError and InUse: what is there can be recovered then.
        """
        if self.recover():
            return True
        self._sides.payload.flush()  # what the checksums are of has to be on the storage
        with ThreadPoolExecutor(_AHEAD, thread_name_prefix="zone") as readers:
            ahead = _ZonesAhead(self._sides, self._state, self._size, self._limit, readers)
            while not ahead.over and go_on(self.done):
                prepared = ahead.next()
                self._state = write(self._sides, self._header, self._state, self._size, prepared)
                ahead.give_back(prepared)
            return ahead.over


class _ZonesAhead:
    """The zones that come next, read and converted in memory by other threads while earlier ones are written."""

    def __init__(
        self, sides: Sides, state: ReencryptionState, size: int, limit: int, readers: ThreadPoolExecutor
    ) -> None:
        """`size` is the plaintext's, `limit` that of a zone, in bytes."""
        self._sides = sides
        self._state = state
        self._size = size
        self._limit = limit
        self._readers = readers
        self._coming: deque[Future[Prepared]] = deque()
        first = next_zone(state, size, limit)
        # one for each that is read, and one for what is being written; made once, for new memory is slow to come
        self._rooms = [memoryview(bytearray(first.size)) for _ in range(_AHEAD + 1)] if first else []
        self._read_on()

    def _read_on(self) -> None:
        while self._rooms and len(self._coming) < _AHEAD:
            zone = next_zone(self._state, self._size, self._limit)
            if zone is None:
                return
            room = self._rooms.pop() if zone.size <= len(self._rooms[-1]) else None
            self._coming.append(self._readers.submit(prepare, self._sides, self._state, zone, room))
            parts = step_parts(self._state, self._size, zone.start, zone.end, Side.NEW)
            self._state = replace(self._state, parts=parts)

    @property
    def over(self) -> bool:
        """Whether there is no zone any more."""
        return not self._coming

    def next(self) -> Prepared:
        """Return the next zone. Raises PayloadError."""
        prepared = self._coming.popleft().result()
        self._read_on()
        return prepared

    def give_back(self, prepared: Prepared) -> None:
        """Take back the memory of a zone that is written."""
        room = memoryview(prepared.data.obj)
        if len(self._rooms) <= _AHEAD:
            self._rooms.append(room)
        self._read_on()
