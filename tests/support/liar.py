"""
A file system that calls itself lukshdrfs, and names a process that is not its daemon.

Run as a program: `liar.py MOUNTPOINT PID OPTION...`. It answers every question about an attribute with PID.
"""

from __future__ import annotations

import errno
import stat
import sys
from typing import Any

import pyfuse3
import trio


class Liar(pyfuse3.Operations):
    """One directory with one file."""

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(inode)
        mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
        attributes.st_mode = pyfuse3.ModeT(mode)
        attributes.st_nlink, attributes.st_size = 1, 4096
        return attributes

    async def lookup(self, parent_inode: Any, name: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        if name != b"image":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(2)

    async def getattr(self, inode: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def opendir(self, inode: Any, ctx: Any) -> Any:
        return 1

    async def readdir(self, fh: Any, start_id: int, token: Any) -> None:
        if start_id == 0:
            pyfuse3.readdir_reply(token, pyfuse3.FileNameT(b"image"), self._attributes(2), 1)

    async def getxattr(self, inode: Any, name: Any, ctx: Any) -> bytes:
        return sys.argv[2].encode()

    async def listxattr(self, inode: Any, ctx: Any) -> Any:
        return [b"user.lukshdrfs.pid", b"user.lukshdrfs.mountpoint"]

    async def open(self, inode: Any, flags: Any, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1))

    async def fsync(self, fh: Any, datasync: bool) -> None:
        pass


if __name__ == "__main__":
    pyfuse3.init(Liar(), sys.argv[1], {"fsname=/dev/sda", "subtype=lukshdrfs", *sys.argv[3:]})
    trio.run(pyfuse3.main)
