"""The unlocked volume: plaintext at any offset, from a header and a payload."""

from lukshdrfs.volume.direct_access import DirectAccess, DirectExtent
from lukshdrfs.volume.extent import Extent
from lukshdrfs.volume.header_file import HeaderFile, locked_for_writing, open_header
from lukshdrfs.volume.header_presence import HeaderPresence
from lukshdrfs.volume.header_repair import repair_header
from lukshdrfs.volume.header_source import HeaderPin, parse_from, read_header, source_descriptor
from lukshdrfs.volume.new_header_file import create_header_file, replace_header_file
from lukshdrfs.volume.opening import LockedVolume, Window, check_usable, lock_volume, open_volume, window_of
from lukshdrfs.volume.recognition import PassOver, check_raw, plaintext_signature
from lukshdrfs.volume.volume import Volume
from lukshdrfs.volume.wipe import fill_with_random
from lukshdrfs.volume.writing import sync_descriptor, write_all

__all__ = [
    "DirectAccess",
    "DirectExtent",
    "Extent",
    "HeaderFile",
    "HeaderPin",
    "HeaderPresence",
    "LockedVolume",
    "PassOver",
    "Volume",
    "Window",
    "check_raw",
    "check_usable",
    "create_header_file",
    "fill_with_random",
    "lock_volume",
    "locked_for_writing",
    "open_header",
    "open_volume",
    "parse_from",
    "plaintext_signature",
    "read_header",
    "repair_header",
    "replace_header_file",
    "source_descriptor",
    "sync_descriptor",
    "window_of",
    "write_all",
]
