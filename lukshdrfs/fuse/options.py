"""How a volume is to be shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DataPath = Literal["auto", "native", "python"]


@dataclass(frozen=True, slots=True)
class LockPolicy:
    """When a mount is locked by itself: the image stops serving, the key is wiped, the mount goes."""

    header: str | None = None
    """When this header is no longer there."""
    max_time_s: float | None = None
    """After so many seconds."""
    idle_timeout_s: float | None = None
    """After so many seconds without a read, write or sync."""


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """What becomes of a half-converted volume while it is mounted."""

    proceed: bool = False
    """Go on with the conversion."""
    rate: int | None = None
    """Bytes a second at most; None: as fast as it can."""
    zone_size: int | None = None
    """Bytes that a step converts at most, for which a request may have to wait; None: what is usual."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Everything about a mount that is not about the volume."""

    mountpoint: str
    """Absolute path of a directory, or of a file that becomes the image."""
    source: str
    """What the mount table names as the source: the payload."""
    name: str = "image"
    """The file's name, in a mounted directory."""
    direct_io: bool = False
    """Pass every read and write on, without the kernel's page cache (`cache=none`)."""
    workers: int = 16
    """Requests that may wait for the payload at the same time, 1 or more."""
    data_path: DataPath = "auto"
    """Who serves reads and writes: the fast lane, Python, or the lane if it can be had."""
    growable: bool = False
    """Let truncate(2) of the image make the payload longer or shorter."""
    ignore_truncation: bool = False
    """Have opening with O_TRUNC change nothing, as on a block device, instead of refusing it."""
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    umask: int = 0o077
    conversion: ConversionOptions = field(default_factory=ConversionOptions)
    lock_policy: LockPolicy = field(default_factory=LockPolicy)
    kernel_options: tuple[str, ...] = ()
    """Passed to the kernel as they are: `allow_other`, …"""

    on_file: bool = field(init=False)
    """Whether the mountpoint is a file, which then is the image itself."""

    def __post_init__(self) -> None:
        """Look at the mountpoint before it is mounted over; afterwards that would wait for ourselves."""
        object.__setattr__(self, "on_file", Path(self.mountpoint).is_file())

    @property
    def image(self) -> str:
        """Path of the image, once mounted."""
        return self.mountpoint if self.on_file else os.path.join(self.mountpoint, self.name)  # noqa: PTH118
