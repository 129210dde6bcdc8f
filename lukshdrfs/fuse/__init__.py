"""The volume as a file: the pyfuse3 file system and the daemon around it. Knows nothing of LUKS's format."""

from lukshdrfs.fuse.background import run_in_background
from lukshdrfs.fuse.daemon import check_fuse, check_mountpoint, serve
from lukshdrfs.fuse.mounts import FILE_SYSTEM_TYPE, detach, find_mount
from lukshdrfs.fuse.options import DataPath, MountOptions

__all__ = [
    "FILE_SYSTEM_TYPE",
    "DataPath",
    "MountOptions",
    "check_fuse",
    "check_mountpoint",
    "detach",
    "find_mount",
    "run_in_background",
    "serve",
]
