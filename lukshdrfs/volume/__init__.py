"""The unlocked volume: plaintext at any offset, from a header and a payload."""

from lukshdrfs.volume.extents import Extent
from lukshdrfs.volume.foreign_data import PassOver, check_raw, plaintext_signature
from lukshdrfs.volume.native_volume import NativeVolume
from lukshdrfs.volume.opening import LockedVolume, lock_volume, open_volume
from lukshdrfs.volume.placement import Window, window_of
from lukshdrfs.volume.random_fill import fill_with_random
from lukshdrfs.volume.usable import check_usable
from lukshdrfs.volume.volume import Volume

__all__ = [
    "Extent",
    "LockedVolume",
    "NativeVolume",
    "PassOver",
    "Volume",
    "Window",
    "check_raw",
    "check_usable",
    "fill_with_random",
    "lock_volume",
    "open_volume",
    "plaintext_signature",
    "window_of",
]
