#!/usr/bin/env python3
"""
Plug an image into a running QEMU as a virtio disk, and unplug it again, over QMP.

    hotplug.py SOCKET attach NAME IMAGE [--cache none] [--sector-size 4096] [--bus BUS]
    hotplug.py SOCKET detach NAME

SOCKET is that of a QEMU with -qmp unix:SOCKET,server=on,wait=off. When `attach` returns, the guest has been told of the
disk; when `detach` returns, the guest has let it go and QEMU has closed the image. A machine of type q35 takes devices
on a pcie-root-port only: name one with --bus. Nothing but Python's standard library is needed.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds for the guest to let a disk go."""


class MonitorError(Exception):
    """QEMU refused a command, did not answer, or is gone."""


class Monitor:
    """A connection to QEMU's machine protocol."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._receive()  # the greeting
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._lines.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise MonitorError("QEMU has closed the connection")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer. Events that come before it are kept for `wait_for`."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._receive()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise MonitorError(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait_for(self, event: str, device: str) -> None:
        """Wait until QEMU reports an event of a device."""
        deadline = time.monotonic() + PATIENCE
        while not any(seen["event"] == event and seen.get("data", {}).get("device") == device for seen in self._events):
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            self._events.append(self._receive())


def attach(monitor: Monitor, name: str, image: Path, *, cache: str, sector_size: int, bus: str | None) -> None:
    """Open the image and plug it in; if the second fails, the first is undone."""
    monitor.execute(
        "blockdev-add",
        **{
            "driver": "raw",
            "node-name": name,
            "cache": {"direct": cache == "none"},
            "file": {"driver": "file", "filename": str(image.resolve())},
        },
    )
    try:
        monitor.execute(
            "device_add",
            driver="virtio-blk-pci",
            id=f"{name}-disk",
            drive=name,
            serial=name,
            logical_block_size=sector_size,
            physical_block_size=sector_size,
            **({} if bus is None else {"bus": bus}),
        )
    except MonitorError:
        monitor.execute("blockdev-del", **{"node-name": name})
        raise


def detach(monitor: Monitor, name: str) -> None:
    """Ask the guest to let the disk go, wait until it has, and close the image."""
    monitor.execute("device_del", id=f"{name}-disk")
    try:
        monitor.wait_for("DEVICE_DELETED", f"{name}-disk")
    except TimeoutError:
        raise MonitorError(f"the guest has not let {name} go: is it mounted there, or has the guest ended?") from None
    monitor.execute("blockdev-del", **{"node-name": name})


def main() -> int:
    """Carry one command out."""
    parser = argparse.ArgumentParser(description="Plug an image into a running QEMU, or unplug it.")
    parser.add_argument("socket")
    commands = parser.add_subparsers(dest="command", required=True)
    plug = commands.add_parser("attach")
    plug.add_argument("name")
    plug.add_argument("image", type=Path)
    plug.add_argument("--cache", choices=("none", "writeback"), default="none")
    plug.add_argument("--sector-size", type=int, default=512, help="what the guest sees; best is the volume's own")
    plug.add_argument("--bus", help="where to plug it in, on a machine of type q35")
    commands.add_parser("detach").add_argument("name")
    arguments = parser.parse_args()
    try:
        monitor = Monitor(arguments.socket)
        try:
            if arguments.command == "detach":
                detach(monitor, arguments.name)
            else:
                attach(
                    monitor,
                    arguments.name,
                    arguments.image,
                    cache=arguments.cache,
                    sector_size=arguments.sector_size,
                    bus=arguments.bus,
                )
        finally:
            monitor.close()
    except (MonitorError, OSError, ValueError) as error:
        print(f"hotplug: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
