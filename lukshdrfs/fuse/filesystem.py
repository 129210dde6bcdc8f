"""
The file system: one directory, one file. Or one file alone, where the mountpoint is a file.

Each request that touches the payload runs in a worker thread, so that a slow one stalls no other. Everything else
is answered at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyfuse3
import trio

from lukshdrfs.fuse import truncation
from lukshdrfs.fuse.answers import answers_errno, refuse
from lukshdrfs.fuse.attributes import attributes, changes_access, usage
from lukshdrfs.fuse.converting import Converting
from lukshdrfs.fuse.extended_attributes import NONE, ExtendedAttributes
from lukshdrfs.fuse.handles import Handles
from lukshdrfs.fuse.lane.lane import FastLane
from lukshdrfs.fuse.options import MountOptions
from lukshdrfs.fuse.resizing import Resizing
from lukshdrfs.mounts import control
from lukshdrfs.mounts.conversion_request import CONVERSION_REQUEST
from lukshdrfs.mounts.resize_request import RESIZE_REQUEST
from lukshdrfs.volume import Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

ROOT = pyfuse3.ROOT_INODE
_RESIZE = RESIZE_REQUEST.encode()
_CONVERSION = CONVERSION_REQUEST.encode()
STORAGE_PATIENCE_S = 0.2
"""How long attributes may wait for a slow payload."""


class ImageFileSystem(pyfuse3.Operations):
    """The request handlers. Their contract is in pyfuse3's documentation of `Operations`."""

    supports_dot_lookup = False

    def __init__(self, volume: Volume, options: MountOptions) -> None:
        """Show a volume. It is the caller's to close, after the mount's end."""
        super().__init__()
        self._volume = volume
        self._options = options
        self._name = os.fsencode(options.name)
        self._image = ROOT if options.on_file else pyfuse3.InodeT(ROOT + 1)
        self._limiter = trio.CapacityLimiter(options.workers)
        self._handles = Handles(volume, self._in_thread)
        self._modified_ns = self._mounted_ns = time.time_ns()
        self._asking_modified = threading.Lock()
        self.asked_to_lock = trio.Event()
        """Set when the mount's owner, or root, has asked it to lock."""
        self.key_wiped = False
        """Whether locking has come so far."""
        self.initialised = trio.Event()
        """Set when the kernel and libfuse have agreed on a protocol."""
        self._xattrs = ExtendedAttributes({**volume.properties, "pid": str(os.getpid())})
        self.resizing = Resizing(volume, self._image, self._in_thread, lambda: self._locked)
        """Who changes the volume's size."""
        self.converting = Converting(volume)
        """The volume's conversion in place."""
        self._locked = False
        self._in_flight = 0
        self._requests = 0
        self._lane: FastLane | None = None
        self._relay: FastLane | None = None
        self.show_property("data_path", "python")

    def serve_by_lane(self, lane: FastLane) -> None:
        """Note that reads and writes are served by the fast lane."""
        self._lane = self._relay = self.resizing.lane = lane
        self.show_property("data_path", "native")

    def pass_through(self, relay: FastLane) -> None:
        """Note that requests pass through a lane, though Python serves them."""
        self._relay = relay

    def show_property(self, name: str, value: str) -> None:
        """Show something about the volume or the mount as an extended attribute of the image."""
        self._xattrs.show(name, value)

    def init(self) -> None:
        """Note that requests will come from now on."""
        self.initialised.set()

    async def _in_thread(self, work: Callable[..., T], *args: object, limiter: trio.CapacityLimiter | None = None) -> T:
        """Do something with the payload or a cipher. Raises FUSEError with EIO once the mount is locked."""
        if self._locked:
            await trio.lowlevel.checkpoint()
            raise pyfuse3.FUSEError(errno.EIO)
        self._in_flight += 1
        self._requests += 1
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=limiter or self._limiter)
        finally:
            self._in_flight -= 1

    @property
    def served_by_python(self) -> bool:
        """Whether what is read and written goes through this process's Python."""
        return self._lane is None

    @property
    def locked(self) -> bool:
        """Whether nothing is served any more."""
        return self._locked

    @property
    def requests(self) -> int:
        """How many requests there have been for the payload so far."""
        return self._requests + (self._lane.requests if self._lane else 0)

    async def lock(self, patience_s: float) -> bool:
        """
        Answer all data requests with EIO from now on; return whether nothing uses the volume any more.

        What was begun is answered first; a payload that takes longer than `patience_s` makes it False. Whatever the
        kernel has cached of the image is dropped.
        """
        self._locked = True
        self.show_property("state", "locked")
        drained = True
        if self._lane:
            drained = await trio.to_thread.run_sync(self._lane.lock, int(patience_s * 1000))
        with trio.move_on_after(patience_s):
            while self._in_flight:  # noqa: ASYNC110 - rarely, and not for long
                await trio.sleep(0.005)
        if not drained or self._in_flight:
            return False  # pages that are being read would have to be waited for
        # in a thread: pages that a program has mapped and changed are written first, to us, who refuse them
        return await trio.to_thread.run_sync(self._forget_cached, patience_s)

    def _forget_cached(self, patience_s: float) -> bool:
        """Return when the kernel has dropped what it has cached, True; or when that takes too long."""
        if self._relay:
            return self._relay.forget_cached(int(patience_s * 1000))
        try:
            pyfuse3.invalidate_inode(self._image)
        except OSError as error:
            log.debug("the kernel has nothing to forget: %s", error)
        return True

    async def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        """Return what stat(2) shows of the directory or of the image."""
        if inode == self._image and not self._locked:
            await self._ask_modified()
        else:
            await trio.lowlevel.checkpoint()
        return self._known_attributes(inode)

    async def _ask_modified(self) -> None:
        """Learn when the payload was last written to, unless its storage takes too long to say so."""
        if self._asking_modified.locked():
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(STORAGE_PATIENCE_S):
            self._modified_ns = await trio.to_thread.run_sync(self._ask_storage, abandon_on_cancel=True)

    def _ask_storage(self) -> int:
        with self._asking_modified:  # one thread, though it be a long time
            self.resizing.look()
            return self._volume.modified_ns()

    def _known_attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        is_image = inode == self._image
        modified = self._modified_ns if is_image else self._mounted_ns
        return attributes(inode, self._volume, self._options, is_image=is_image, modified_ns=modified)

    @answers_errno
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        await trio.lowlevel.checkpoint()
        if parent_inode != ROOT or name != self._name or self._image == ROOT:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self._attributes(self._image)

    @answers_errno
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return await self._attributes(inode)

    @answers_errno
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """
        Refuse every change but that of the size, if it is growable; what changes nothing is fine.

        So are times, which follow the payload.
        """
        now = await self._attributes(inode)
        if changes_access(now, attr, fields):
            raise pyfuse3.FUSEError(errno.EPERM)
        if not fields.update_size or attr.st_size == now.st_size:
            return now
        if inode != self._image or not self._options.growable:
            truncation.refuse_size(self._options.image, attr.st_size, now.st_size)
        await self.resizing.truncate(attr.st_size)
        return await self._attributes(inode)

    @answers_errno
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open the image. O_TRUNC is refused, or changes nothing: whoever truncates relies on zeros afterwards."""
        await trio.lowlevel.checkpoint()
        if inode != self._image:
            raise pyfuse3.FUSEError(errno.EISDIR)
        if self._volume.read_only and flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise pyfuse3.FUSEError(errno.EROFS)
        if flags & os.O_TRUNC and not self._options.ignore_truncation:
            truncation.refuse_opening(self._options.image)
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(self._handles.open(flags)),
            direct_io=self._options.direct_io,
            keep_cache=not self._options.direct_io,
        )

    @answers_errno
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return await self._in_thread(self._volume.pread, size, off)

    @answers_errno
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        if not self._handles.is_synchronous(fh):
            return await self._in_thread(self._volume.pwrite, buf, off)
        count = await self._in_thread(functools.partial(self._volume.pwrite, synchronous=True), buf, off)
        if not self._options.direct_io:
            self._handles.note_synchronous_write(fh)
        return count

    @answers_errno
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._handles.sync(fh)

    @answers_errno
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Do nothing: a close is no fsync, and writes report their errors themselves."""
        await trio.lowlevel.checkpoint()

    @answers_errno
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        await trio.lowlevel.checkpoint()
        self._handles.release(fh)

    @answers_errno
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        await trio.lowlevel.checkpoint()
        return pyfuse3.FileHandleT(0)

    @answers_errno
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await trio.lowlevel.checkpoint()
        if start_id == 0:
            attributes = await self._attributes(self._image)
            pyfuse3.readdir_reply(token, pyfuse3.FileNameT(self._name), attributes, 1)

    @answers_errno
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        await trio.lowlevel.checkpoint()

    @answers_errno
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await trio.lowlevel.checkpoint()

    @answers_errno
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        await trio.lowlevel.checkpoint()
        return usage(self._volume)

    @answers_errno
    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        await trio.lowlevel.checkpoint()
        if inode == ROOT and name in control.REQUESTS and ctx.uid in (0, os.getuid()):
            return self._answer_owner(name)
        if inode == ROOT and name == _RESIZE:
            return self.resizing.answer()
        if inode == ROOT and name == _CONVERSION:
            return self.converting.answer()
        return self._attributes_of(inode).value(name)

    def _answer_owner(self, name: bytes) -> bytes:
        """Answer what is asked of the mount, and not of the image."""
        if name == control.DAEMON_REQUEST.encode():
            return control.identity().encode()
        self.asked_to_lock.set()
        return (control.LOCKED if self.key_wiped else control.LOCKING).encode()

    @answers_errno
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> list[pyfuse3.XAttrNameT]:
        await trio.lowlevel.checkpoint()
        return [pyfuse3.XAttrNameT(name) for name in self._attributes_of(inode).names()]

    @answers_errno
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        await trio.lowlevel.checkpoint()
        if inode == ROOT and name == _RESIZE:
            self.resizing.ask(ctx.uid, value)
        elif inode == ROOT and name == _CONVERSION:
            self.converting.ask(ctx.uid, value)
        else:
            self._attributes_of(inode).refuse_change(name)

    @answers_errno
    async def removexattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> None:
        await trio.lowlevel.checkpoint()
        self._attributes_of(inode).refuse_change(name, removing=True)

    def _attributes_of(self, inode: int) -> ExtendedAttributes:
        if self.converting.is_there:
            self.show_property("conversion", self.converting.answer().decode())
        return self._xattrs if inode == self._image else NONE

    @answers_errno
    async def access(self, inode: pyfuse3.InodeT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext) -> bool:
        """Say yes: the kernel has checked the permissions itself (`default_permissions`)."""
        await trio.lowlevel.checkpoint()
        return True

    async def forget(self, inode_list: Any) -> None:
        """Do nothing: both inodes are there as long as the mount is."""
        await trio.lowlevel.checkpoint()

    create = refuse(errno.EPERM)
    link = refuse(errno.EPERM)
    mkdir = refuse(errno.EPERM)
    mknod = refuse(errno.EPERM)
    readlink = refuse(errno.EINVAL)
    rename = refuse(errno.EPERM)
    rmdir = refuse(errno.EPERM)
    symlink = refuse(errno.EPERM)
    unlink = refuse(errno.EPERM)
