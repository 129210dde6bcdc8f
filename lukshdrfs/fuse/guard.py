"""
A process that ends the kernel's connection if the daemon is killed.

The kernel does so by itself when the last descriptor of /dev/fuse is closed. But a thread that tells it to drop cached
pages waits there for requests that are under way, and cannot be killed meanwhile (see coherence.h). If the daemon is
killed at that moment, nobody is left to answer them: the thread would wait forever, and with it all who use the image.
"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
from contextlib import suppress

from lukshdrfs.environment import for_children

log = logging.getLogger(__name__)

CONNECTIONS = "/sys/fs/fuse/connections"
# A line says that all is well. The end of the pipe without one says that the daemon is gone.
_PATIENCE_S = 2.0
"""How long the process may take to end."""
_SCRIPT = "trap '' HUP INT TERM; read -r line || echo 1"
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the numbers of the system calls, the same on all architectures
_FSCONFIG_CMD_CREATE = 6


class Guard:
    """Watches over one mount. Where it cannot be had, everything works without."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, device: str) -> None:
        """Start the process for a mount; `device` is its `major:minor` of the mount table."""
        try:
            control = _open_control(int(device.partition(":")[2]))
        except OSError as error:
            log.debug("no guard over the connection: %s", error.strerror)
            return
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=control,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # what the terminal's interrupt ends is the daemon
                env=for_children(),
            )
        except OSError as error:
            log.debug("no guard over the connection: %s", error.strerror)
        finally:
            os.close(control)

    def end(self) -> None:
        """Send the process home: nobody can be left waiting any more."""
        if self._process is None:
            return
        with suppress(OSError):  # somebody has killed it
            try:
                self._process.communicate(b"\n", timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:  # somebody has stopped it
                self._process.kill()
                self._process.communicate()


def _open_control(connection: int) -> int:
    """Return a descriptor; what is written to it ends the connection. Raises OSError."""
    try:
        return os.open(f"{CONNECTIONS}/{connection}/abort", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # the kernel's control files are not mounted here, as in many a container; root can have them all the same
        folder = _mounted_nowhere()
        try:
            return os.open(f"{connection}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)


def _mounted_nowhere() -> int:
    """Return a descriptor of the root of FUSE's control file system. Raises OSError; it takes root."""
    call = ctypes.CDLL(None, use_errno=True).syscall

    def checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    context = checked(call(_FSOPEN, b"fusectl", 1))
    try:
        checked(call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        return checked(call(_FSMOUNT, context, 1, 0))
    finally:
        os.close(context)
