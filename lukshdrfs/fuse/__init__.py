"""The volume as a file: the pyfuse3 file system and the daemon around it. Knows nothing of LUKS's format."""

from lukshdrfs.fuse.apart import Apart, ask_apart, wait_apart
from lukshdrfs.fuse.background import run_in_background
from lukshdrfs.fuse.control import (
    ANSWER_LIMIT_S,
    GONE,
    LOCKED,
    LOCKING,
    ask_daemon,
    detach_apart,
    image_of,
    open_daemon,
    owner_to_ask,
    request_lock,
)
from lukshdrfs.fuse.daemon import check_fuse, check_mountpoint, check_not_mounted, serve
from lukshdrfs.fuse.holders import describe_holders_apart, holders_apart, other_namespace_apart
from lukshdrfs.fuse.mounts import FILE_SYSTEM_TYPE, Mount, find_mount, mount_table, our_mounts
from lukshdrfs.fuse.options import DataPath, LockPolicy, MountOptions
from lukshdrfs.fuse.resizing import RESIZE_REQUEST, Wish

__all__ = [
    "ANSWER_LIMIT_S",
    "FILE_SYSTEM_TYPE",
    "GONE",
    "LOCKED",
    "LOCKING",
    "RESIZE_REQUEST",
    "Apart",
    "DataPath",
    "LockPolicy",
    "Mount",
    "MountOptions",
    "Wish",
    "ask_apart",
    "ask_daemon",
    "check_fuse",
    "check_mountpoint",
    "check_not_mounted",
    "describe_holders_apart",
    "detach_apart",
    "find_mount",
    "holders_apart",
    "image_of",
    "mount_table",
    "open_daemon",
    "other_namespace_apart",
    "our_mounts",
    "owner_to_ask",
    "request_lock",
    "run_in_background",
    "serve",
    "wait_apart",
]
