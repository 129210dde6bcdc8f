"""What stat(2) and statfs(2) show of the directory and the image."""

from __future__ import annotations

import stat

import pyfuse3

from lukshdrfs.fuse.options import MountOptions
from lukshdrfs.volume import Volume

BLOCK = 512  # what st_blocks counts: stat(2)
MIN_BLOCK_SIZE = 4096
ENTRY_TIMEOUT_S = 3600.0
"""The one file never goes away."""
ATTRIBUTE_TIMEOUT_S = 1.0
"""Only the time of modification changes."""


def attributes(
    inode: int, volume: Volume, options: MountOptions, *, is_image: bool, modified_ns: int
) -> pyfuse3.EntryAttributes:
    """Return what stat(2) shows of the directory or the image; `modified_ns` since the epoch."""
    writable = 0 if volume.read_only else stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    everything = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH | writable
    shown = pyfuse3.EntryAttributes()
    shown.st_ino = pyfuse3.InodeT(inode)
    shown.st_uid, shown.st_gid = options.uid, options.gid
    shown.entry_timeout, shown.attr_timeout = ENTRY_TIMEOUT_S, ATTRIBUTE_TIMEOUT_S
    shown.st_blksize = max(MIN_BLOCK_SIZE, volume.sector_size)
    if is_image:
        mode = stat.S_IFREG | (everything & ~options.umask)
        shown.st_nlink = 1
        shown.st_size = volume.size
        # a hole in the payload is no hole in the plaintext, so every block counts
        shown.st_blocks = -(-volume.size // BLOCK)
    else:
        search = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
        mode = stat.S_IFDIR | ((everything | search) & ~options.umask)
        shown.st_nlink = 2
    shown.st_mode = pyfuse3.ModeT(mode)
    shown.st_atime_ns = shown.st_ctime_ns = shown.st_mtime_ns = modified_ns
    return shown


def changes_access(
    now: pyfuse3.EntryAttributes, wanted: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields
) -> bool:
    """Whether a request would give the file another mode, owner or group than it has."""
    return bool(
        (fields.update_mode and stat.S_IMODE(wanted.st_mode) != stat.S_IMODE(now.st_mode))
        or (fields.update_uid and wanted.st_uid != now.st_uid)
        or (fields.update_gid and wanted.st_gid != now.st_gid)
    )


def usage(volume: Volume) -> pyfuse3.StatvfsData:
    """
    Return what statfs(2) shows: as many blocks as the image has, none of them used, and no count of inodes.

    Nothing but the image will ever be there. Blocks that count as used would make it a file system that is full, which
    is what monitors raise the alarm for; a write to the image takes none.
    """
    shown = pyfuse3.StatvfsData()
    shown.f_bsize = shown.f_frsize = MIN_BLOCK_SIZE
    shown.f_blocks = shown.f_bfree = shown.f_bavail = -(-volume.size // MIN_BLOCK_SIZE)
    shown.f_files = shown.f_ffree = shown.f_favail = 0  # as of btrfs, which counts none
    shown.f_namemax = 255
    return shown
