"""
A disk one part of which takes no writes: a file system of one file, which a loop device makes a disk of.

    python3 failing_disk.py FOLDER SIZE BAD_START BAD_END

It keeps its bytes in memory. Run by `failing_disk`, as a process of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def failing_disk(folder: Path, size: int, bad: range) -> Iterator[Path]:
    """Show a file of `size` bytes in which those of `bad` cannot be written."""
    from support.tools import program  # noqa: PLC0415 - the disk's own process has no tests around it
    from support.waiting import wait_until  # noqa: PLC0415

    folder.mkdir()
    disk = folder / "disk"
    with subprocess.Popen([sys.executable, __file__, folder, str(size), str(bad.start), str(bad.stop)]) as server:
        try:
            wait_until(disk.exists, "the disk is there")
            yield disk
        finally:
            subprocess.run([program("umount"), "--lazy", folder], check=False)
            server.wait(timeout=20)


def serve(folder: str, size: int, bad: range) -> None:
    """Serve until it is unmounted."""
    import pyfuse3  # noqa: PLC0415 - the tests' own process needs none
    import trio  # noqa: PLC0415

    data = bytearray(size)

    class Disk(pyfuse3.Operations):
        async def lookup(self, parent_inode: Any, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
            if name != b"disk":
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(pyfuse3.InodeT(2), ctx)

        async def getattr(self, inode: pyfuse3.InodeT, ctx: Any) -> pyfuse3.EntryAttributes:
            attributes = pyfuse3.EntryAttributes()
            attributes.st_ino, attributes.st_nlink, attributes.st_size = inode, 1, size
            attributes.st_mode = pyfuse3.ModeT((stat.S_IFDIR if inode == pyfuse3.ROOT_INODE else stat.S_IFREG) | 0o700)
            return attributes

        async def open(self, inode: Any, flags: Any, ctx: Any) -> pyfuse3.FileInfo:
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1))

        async def read(self, fh: Any, off: int, count: int) -> bytes:
            return bytes(data[off : off + count])

        async def write(self, fh: Any, off: int, buf: bytes) -> int:
            if off < bad.stop and off + len(buf) > bad.start:
                raise pyfuse3.FUSEError(errno.EIO)
            data[off : off + len(buf)] = buf
            return len(buf)

        async def flush(self, fh: Any) -> None:
            pass

        async def fsync(self, fh: Any, datasync: bool) -> None:
            pass

    pyfuse3.init(Disk(), folder, {"fsname=failing_disk"})
    trio.run(pyfuse3.main)
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), range(int(sys.argv[3]), int(sys.argv[4])))
