"""The unlocked volume: plaintext at any offset, from a header and a payload."""

from lukshdrfs.volume.direct_access import DirectAccess, DirectExtent
from lukshdrfs.volume.header_source import HeaderPin, read_header, source_descriptor
from lukshdrfs.volume.opening import LockedVolume, Window, check_usable, lock_volume, open_volume
from lukshdrfs.volume.volume import Extent, Volume

__all__ = [
    "DirectAccess",
    "DirectExtent",
    "Extent",
    "HeaderPin",
    "LockedVolume",
    "Volume",
    "Window",
    "check_usable",
    "lock_volume",
    "open_volume",
    "read_header",
    "source_descriptor",
]
