"""
A conversion in place beside a mount: begun and ended with it, and steered by its owner.

The owner asks by an extended attribute of the mountpoint, which is answered at once. Names in the `system` name space
need no permission on a file to be set (xattr(7)), so who asks is looked at here.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading

import pyfuse3

from lukshdrfs.errors import UnsupportedFeature
from lukshdrfs.mounts.conversion_request import Steering
from lukshdrfs.volume import Volume

log = logging.getLogger(__name__)

_PATIENCE_S = 10.0
_SMALLEST_ZONE = 4096


class Converting:
    """The conversion of a mounted volume, if it is half-converted."""

    def __init__(self, volume: Volume) -> None:
        """Nothing happens before `start`."""
        self._conversion = volume.conversion
        self._thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        """Whether the volume is half-converted, or was when it was mounted."""
        return self._conversion is not None

    def start(self, *, proceed: bool, rate: int | None, zone_size: int | None) -> None:
        """
        Have a thread wait for what is asked for; with `proceed`, go on with the conversion at once.

        `rate` (bytes a second) and `zone_size` (bytes) as in `Steering`. Raises UnsupportedFeature.
        """
        if self._conversion is None:
            return
        self._steer(Steering("continue" if proceed else "", rate, zone_size))
        self._thread = threading.Thread(target=self._conversion.run, name="conversion", daemon=True)
        self._thread.start()

    def _steer(self, asked: Steering) -> None:
        assert self._conversion is not None
        if asked.rate is not None:
            self._conversion.rate = asked.rate or None
        if asked.zone_size is not None:
            self._conversion.zone_size = max(asked.zone_size, _SMALLEST_ZONE)
        if asked.action == "continue":
            self._conversion.proceed()
        elif asked.action == "pause":
            self._conversion.pause()

    def ask(self, user: int, text: bytes) -> None:
        """Take a request. Raises FUSEError: EPERM for another user than the owner and root, ENODATA; UsageError."""
        if user not in (0, os.getuid()):
            raise pyfuse3.FUSEError(errno.EPERM)
        if self._conversion is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        try:
            self._steer(Steering.parse(text))
        except UnsupportedFeature as error:
            log.error("%s", error)  # noqa: TRY400 - of the volume, not of the program
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP) from None

    def answer(self) -> bytes:
        """Return how far it is, as CONVERSION_REQUEST says."""
        if self._conversion is None:
            return b'{"state": "none"}'
        progress = self._conversion.progress
        told = {"mode": progress.mode, "done": progress.done, "size": progress.size, "state": progress.state}
        return json.dumps({**told, "error": progress.error} if progress.error else told).encode()

    def end(self, patience_s: float | None = None) -> bool:
        """
        End it after the step at hand; return whether it has ended within so many seconds.

        Until it has, the volume's key may not be wiped.
        """
        if self._thread is None or self._conversion is None:
            return True
        self._conversion.end()
        self._thread.join(_PATIENCE_S if patience_s is None else patience_s)
        if patience_s is None and self._thread.is_alive():
            log.warning("a step of the conversion waits for the payload or the header; the daemon ends when it is done")
            self._thread.join()
        return not self._thread.is_alive()
