"""The volume as a file: the pyfuse3 file system and the daemon around it. Knows nothing of LUKS's format."""

from lukshdrfs.fuse.checks import check_fuse, check_mountpoint, check_not_mounted
from lukshdrfs.fuse.daemon import serve
from lukshdrfs.fuse.options import ConversionOptions, DataPath, LockPolicy, MountOptions

__all__ = [
    "ConversionOptions",
    "DataPath",
    "LockPolicy",
    "MountOptions",
    "check_fuse",
    "check_mountpoint",
    "check_not_mounted",
    "serve",
]
