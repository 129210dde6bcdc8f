"""A payload on which a conversion was cut off, read as it will be once that is recovered; nothing is written."""

from __future__ import annotations

import errno
from typing import Self

from lukshdrfs.errors import PayloadError
from lukshdrfs.payload import Payload
from lukshdrfs.volume.moving.recovery import HotZone


class RecoveredPayload:
    """The payload below, for reading, with the zone that a step was cut off in as that step would have left it."""

    native = None
    descriptor = None
    read_only = True

    def __init__(self, below: Payload, zone: HotZone) -> None:
        """Take over the payload; the zone's ciphers stay the caller's, who keeps them as long as there are reads."""
        self._below = below
        self._zone = zone

    @property
    def name(self) -> str:
        """See Payload."""
        return self._below.name

    @property
    def size(self) -> int:
        """See Payload."""
        return self._below.size

    def identity(self) -> tuple[int, int] | None:
        """See Payload."""
        return self._below.identity()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Payload."""
        self._below.read_into(buffer, offset)
        zone, end = self._zone, offset + len(buffer)
        for start, stop in zone.pieces():
            first = zone.place + start - zone.start
            last = first + stop - start
            if first < end and offset < last:
                recovered = zone.recovered(start, stop)
                here, there = max(first, offset), min(last, end)
                buffer[here - offset : there - offset] = recovered[here - first : there - first]

    def write(self, data: memoryview, offset: int, *, synchronous: bool = False) -> None:  # noqa: ARG002
        """Refuse."""
        raise PayloadError(f"payload {self.name} is open for reading only", errno.EROFS)

    def flush(self, *, asked: bool = True) -> None:
        """See Payload: nothing is written."""

    def fail_waiting(self) -> None:
        """See Payload."""
        self._below.fail_waiting()

    def wait_again(self) -> None:
        """See Payload."""
        self._below.wait_again()

    def resize(self, size: int) -> None:  # noqa: ARG002
        """Refuse."""
        raise PayloadError(f"payload {self.name} is open for reading only", errno.EPERM)

    def refresh_size(self) -> None:
        """See Payload."""
        self._below.refresh_size()

    def modified_ns(self) -> int:
        """See Payload."""
        return self._below.modified_ns()

    def close(self) -> None:
        """See Payload."""
        self._below.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
