"""
Telling systemd how the daemon is: ready, ending.

Source: sd_notify(3), "Notes" (the protocol, which is meant to be spoken without a library).
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(*assignments: str) -> None:
    """Send assignments (`READY=1`, `STATUS=…`) to the service manager; do nothing if there is none that listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.connect(address)
            manager.sendall("\n".join(assignments).encode())
    except OSError as error:
        log.warning("the service manager cannot be told: %s", error.strerror)
