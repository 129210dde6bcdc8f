"""
Unlock a LUKS volume whose header lives apart from its data, without root.

    with lukshdrfs.open_volume("payload.img", header="header.img", passphrase=b"…") as volume:
        data = volume.pread(4096, offset=0)

`lukshdrfs mount` on the command line shows the same volume as a file.
"""

from lukshdrfs._version import VERSION as __version__  # noqa: N811 - the name that packages have
from lukshdrfs.errors import (
    DeviceError,
    HeaderError,
    InUse,
    KeyslotError,
    LukshdrfsError,
    NoHeader,
    NoUsableKeyslot,
    OutOfMemory,
    PayloadError,
    ReadOnlyError,
    UnsupportedFeature,
    UsageError,
    WrongKey,
)
from lukshdrfs.headers import HeaderPin
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.volume import Volume, open_volume

__all__ = [
    "DeviceError",
    "HeaderError",
    "HeaderPin",
    "InUse",
    "KdfLimits",
    "KeyslotError",
    "LukshdrfsError",
    "NoHeader",
    "NoUsableKeyslot",
    "OutOfMemory",
    "PayloadError",
    "ReadOnlyError",
    "UnsupportedFeature",
    "UsageError",
    "Volume",
    "WrongKey",
    "__version__",
    "open_volume",
]
