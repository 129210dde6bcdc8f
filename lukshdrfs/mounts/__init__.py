"""The kernel's mount table, our mounts in it, who holds them, and what they are asked. Knows no FUSE."""

from lukshdrfs.mounts.apart import Apart, ask_apart, wait_apart
from lukshdrfs.mounts.control import (
    ANSWER_LIMIT_S,
    GONE,
    LOCKED,
    LOCKING,
    PROPERTY_PREFIX,
    ask_daemon,
    detach_apart,
    image_of,
    open_daemon,
    owner_to_ask,
    request_lock,
)
from lukshdrfs.mounts.conversion_request import CONVERSION_REQUEST, Steering
from lukshdrfs.mounts.holders import describe_holders_apart, holders_apart, other_namespace_apart
from lukshdrfs.mounts.resize_request import RESIZE_REQUEST, Wish
from lukshdrfs.mounts.table import FILE_SYSTEM_TYPE, Mount, find_mount, mount_table, our_mounts

__all__ = [
    "ANSWER_LIMIT_S",
    "CONVERSION_REQUEST",
    "FILE_SYSTEM_TYPE",
    "GONE",
    "LOCKED",
    "LOCKING",
    "PROPERTY_PREFIX",
    "RESIZE_REQUEST",
    "Apart",
    "Mount",
    "Steering",
    "Wish",
    "ask_apart",
    "ask_daemon",
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
    "wait_apart",
]
