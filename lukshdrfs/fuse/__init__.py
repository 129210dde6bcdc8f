"""The volume as a file: the pyfuse3 file system and the daemon around it. Knows nothing of LUKS's format."""

from lukshdrfs.fuse.apart import Apart
from lukshdrfs.fuse.background import run_in_background
from lukshdrfs.fuse.daemon import check_fuse, check_mountpoint, check_not_mounted, serve
from lukshdrfs.fuse.holders import describe_holders, holders, other_namespace
from lukshdrfs.fuse.lock import LOCK_SIGNAL
from lukshdrfs.fuse.mounts import FILE_SYSTEM_TYPE, Mount, detach, find_mount, mount_table
from lukshdrfs.fuse.options import DataPath, LockPolicy, MountOptions
from lukshdrfs.fuse.resizing import RESIZE_REQUEST, Wish

__all__ = [
    "FILE_SYSTEM_TYPE",
    "LOCK_SIGNAL",
    "RESIZE_REQUEST",
    "Apart",
    "DataPath",
    "LockPolicy",
    "Mount",
    "MountOptions",
    "Wish",
    "check_fuse",
    "check_mountpoint",
    "check_not_mounted",
    "describe_holders",
    "detach",
    "find_mount",
    "holders",
    "mount_table",
    "other_namespace",
    "run_in_background",
    "serve",
]
