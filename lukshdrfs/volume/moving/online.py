"""
The conversion of a volume that is served meanwhile: zone by zone, each held alone while it is worked on.

A request for the zone waits for one step; all others go on, and a flush waits for nothing but the storage. What fails
before the header says that the zone is in work has changed nothing: the conversion stops and the volume goes on. What
fails afterwards leaves it open what the storage has. The zone's requests fail from then on, since whatever was written
there would be taken for a part of the step by who recovers it; when the conversion goes on, that step is done again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lukshdrfs.errors import LukshdrfsError, UnsupportedFeature
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Stage
from lukshdrfs.volume.moving.sides import Sides
from lukshdrfs.volume.moving.zone import LARGEST_ZONE, Prepared, Zone, convert, finish, next_zone, prepare, protect
from lukshdrfs.volume.volume import Volume

log = logging.getLogger(__name__)

ONLINE_ZONE = 4 << 20
"""Bytes that a step converts unless it is told otherwise: so long its requests wait. See benchmarks/README.md."""

StateName = Literal["paused", "running", "failed", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a conversion is."""

    mode: str
    """`encrypt`, `decrypt` or `reencrypt`."""
    done: int
    """Bytes of plaintext that are converted."""
    size: int
    """Bytes of plaintext in all."""
    state: StateName
    error: str = ""
    """Why it has failed."""


class OnlineConversion:
    """
    A conversion beside the volume that it converts. It is paused until it is told to go on.

    One thread runs it (`run`); any may steer it and ask how far it is.
    """

    def __init__(
        self, volume: Volume, sides: Sides, state: ReencryptionState, size: int, open_header: Callable[[], LiveHeader]
    ) -> None:
        """`size` is the plaintext's in bytes. The header is opened when the first step needs it."""
        self._volume = volume
        self._sides = sides
        self._conversion = state
        self._size = size
        self._open_header = open_header
        self._header: LiveHeader | None = None
        self._unfinished: Prepared | None = None
        self._steered = threading.Condition()
        self._state: StateName = "paused"
        self._error = ""
        self._ending = False
        self.zone_size = ONLINE_ZONE
        """Bytes that a step converts at most."""
        self.rate: int | None = None
        """Bytes a second at most; None: as fast as it can."""

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        conversion = self._conversion
        return Progress(conversion.mode, conversion.converted(self._size), self._size, self._state, self._error)

    def proceed(self) -> None:
        """Go on, also after a failure. Raises UnsupportedFeature for a conversion that also moves the data."""
        self.check_online()
        self._steer("running")

    def check_online(self) -> None:
        """Raise UnsupportedFeature for a conversion that cannot go on while the volume is used."""
        protection, unmounted = self._conversion.protection, f"unmount it and run 'lukshdrfs {self._conversion.mode}'"
        if protection.shift:
            raise UnsupportedFeature(
                f"a conversion that moves the data to another place is not done while the volume is used; {unmounted}"
            )
        if protection.in_place == "checksum" and self._size % protection.block_size:
            raise UnsupportedFeature(
                f"the conversion's checksums are of {protection.block_size} bytes: the volume's end is without; "
                f"{unmounted}, which changes that"
            )
        if not protection.in_place:
            raise UnsupportedFeature(f"the conversion was begun without any resilience; {unmounted}")

    def pause(self) -> None:
        """Stop after the step at hand, until it is told to go on."""
        self._steer("paused")

    def _steer(self, state: StateName) -> None:
        with self._steered:
            if self._state != "done" and not (state == "paused" and self._state == "failed"):
                self._state, self._error = state, ""
            self._steered.notify_all()

    def end(self) -> None:
        """Have `run` return after the step at hand, whatever it waits for."""
        with self._steered:
            self._ending = True
            self._steered.notify_all()

    def run(self) -> None:
        """Convert when it is told to, until all is converted or `end` is called."""
        try:
            while self._may_go_on():
                start = time.monotonic()
                try:
                    done = self._step()
                except LukshdrfsError as error:
                    self._fail(str(error))
                except Exception as error:  # a bug: say so loudly, and serve the volume
                    log.exception("the conversion has failed")
                    self._fail(str(error))
                else:
                    self._keep_to_rate(done, time.monotonic() - start)
        finally:
            if self._header:
                self._header.close()

    def _may_go_on(self) -> bool:
        with self._steered:
            self._steered.wait_for(lambda: self._ending or self._state in ("running", "done"))
            return not self._ending and self._state == "running"

    def _fail(self, reason: str) -> None:
        log.error("the conversion stops, and the volume is served as it is: %s", reason)
        with self._steered:
            self._state, self._error = "failed", reason

    def _keep_to_rate(self, size: int, spent_s: float) -> None:
        """Wait until as many bytes are due."""
        with self._steered:
            deadline = time.monotonic() - spent_s + (size / self.rate if self.rate else 0)
            while not self._ending and self._state == "running" and time.monotonic() < deadline:
                self._steered.wait(deadline - time.monotonic())

    def _step(self) -> int:
        """Convert a zone; return how many bytes that were. Raises PayloadError, InUse, DeviceError."""
        if self._header is None:
            self._header = self._open_header()
        if self._unfinished:
            return self._finish_step(self._header, self._unfinished)
        zone = next_zone(self._conversion, self._size, min(self.zone_size, LARGEST_ZONE))
        if zone is None:
            finish(self._header, self._conversion)
            self._note_done()
            return 0
        self._volume.flush(asked=False)  # most of what the zone's step has to wait for, while nobody waits for the zone
        # the header's lock comes first: who keeps it from us keeps nobody from the zone, and cannot come in between
        with self._header.locked(), self._volume.hold_alone(zone.start, zone.end):
            # what was written there is on the storage before its checksum is: see `zone`
            self._volume.flush(asked=False)
            prepared = prepare(self._sides, self._conversion, zone)
            protect(self._sides, self._header, self._conversion, prepared)
            try:
                self._convert(self._header, prepared)
            except BaseException:
                self._take_out(zone)
                self._unfinished = prepared
                raise
            self._take_over(zone)
        return zone.size

    def _finish_step(self, header: LiveHeader, prepared: Prepared) -> int:
        """Do again what has failed, while the zone's requests still fail."""
        zone = prepared.zone
        with header.locked(), self._volume.hold_alone(zone.start, zone.end):
            self._convert(header, prepared)
            self._take_over(zone)
        self._unfinished = None
        return zone.size

    def _convert(self, header: LiveHeader, prepared: Prepared) -> None:
        after = convert(self._sides, header, self._conversion, self._size, prepared)
        self._conversion = after
        if after.stage is Stage.FINISHED:
            self._note_done()

    def _note_done(self) -> None:
        with self._steered:
            self._state = "done"
            self._steered.notify_all()
        log.info("the conversion is over: all %d bytes are done", self._size)

    def _take_over(self, zone: Zone) -> None:
        """Have a zone be of the new side. The extents are new, hot, old, or in backward order; the hot one is empty."""
        far, near = (1, 0) if self._conversion.forward else (0, 1)
        border = zone.end if self._conversion.forward else zone.start
        self._volume.move_border(far, border)
        self._volume.move_border(near, border)

    def _take_out(self, zone: Zone) -> None:
        """Have a zone's requests fail."""
        if self._conversion.forward:
            self._volume.move_border(1, zone.end)
        else:
            self._volume.move_border(0, zone.start)
