"""A payload in a regular file or on a block device."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from typing import Self

from lukshdrfs.errors import DeviceError, InUse, PayloadError, ReadOnlyError
from lukshdrfs.native import ffi, lib
from lukshdrfs.payload.image_locks import lock_image
from lukshdrfs.payload.in_use import check_unused
from lukshdrfs.payload.loop_devices import UnknownBacking, backings
from lukshdrfs.payload.writable import check_writable_device

log = logging.getLogger(__name__)

SYNCHRONOUS_WRITES = 16
"""Synchronous writes that are under way at the same time, at most: each has an open file description of its own."""


class FilePayload:
    """A file or block device, locked against other users while it is open."""

    def __init__(
        self, descriptor: int, name: str, *, read_only: bool, write_through: bool = False, preserve_times: bool = False
    ) -> None:
        """Take over an open descriptor; use `FilePayload.open`."""
        self._descriptor = descriptor
        self._write_through = write_through
        self._native_made = threading.Lock()
        self._native: object = None
        self._locks: list[int] = []
        """What lies behind a loop device, open for its locks alone."""
        self._name = name
        self._read_only = read_only
        self._size = 0
        status = os.fstat(descriptor)
        self._times_ns = (status.st_atime_ns, status.st_mtime_ns) if preserve_times else None
        self.refresh_size()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool,
        write_through: bool = False,
        locked: bool = True,
        window: tuple[int, int] | None = None,
        preserve_times: bool = False,
    ) -> Self:
        """
        Open and lock a payload. With `write_through`, each write is on the storage when it returns.

        With a `window` (offset and size in bytes), only that part is locked: the rest may be other volumes' payload.
        With `preserve_times`, its times of access and modification are put back when it is closed, as far as that is
        ours to do; the time of change of the inode cannot be.
        Without `locked`, for who only looks, it is taken whoever has it, and nobody is kept out.
        Raises DeviceError if it is not there, not readable or not writable, or not something that holds bytes;
        InUse if another program has it.
        """
        name = os.fspath(path)
        mode = _file_mode(name)
        flags = os.O_RDONLY if read_only else os.O_RDWR
        if stat.S_ISBLK(mode) and not read_only and window is None:
            flags |= os.O_EXCL  # fails while it is mounted or has an exclusive user: open(2)
        descriptor = _open(name, flags)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, descriptor)
            if stat.S_IFMT(os.fstat(descriptor).st_mode) != stat.S_IFMT(mode):
                raise InUse(f"payload {name} is being replaced by another program")
            if not read_only:
                check_writable_device(descriptor, name, f"payload {name}", "use --read-only")
            locks = _lock_everywhere(descriptor, name, opened, writable=not read_only, window=window) if locked else []
            if not read_only and not flags & os.O_EXCL:
                check_unused(descriptor, f"payload {name}", window)
            payload = cls(
                descriptor, name, read_only=read_only, write_through=write_through, preserve_times=preserve_times
            )
            payload._locks = locks
            opened.pop_all()
        return payload

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return self._name

    @property
    def size(self) -> int:
        """See Payload."""
        return self._size

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""
        return self._read_only

    @property
    def descriptor(self) -> int:
        """See Payload. Open as long as this object is."""
        return self._descriptor

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file, no device."""
        return stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def identity(self) -> tuple[int, int]:
        """Return device and inode number, by which two paths to one file are told."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Payload."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._failure("reading", offset + done, error) from None
            if count == 0:
                raise PayloadError(f"payload {self._name} ends at byte {offset + done}; it was cut off while in use")
            done += count

    def write(self, data: memoryview, offset: int, *, synchronous: bool = False) -> None:
        """See Payload."""
        if self._read_only:
            raise ReadOnlyError(f"payload {self._name} is open for reading only")
        done = 0
        if data and (synchronous or self._write_through):
            native = self.native
            with ffi.from_buffer("uint8_t[]", data) as view:  # given back before anything is raised
                code = lib.file_payload_write(native, view, len(view), offset, True)
            self._check(code, "writing", offset)
            done = len(data)
        while done < len(data):
            try:
                done += os.pwrite(self._descriptor, data[done:], offset + done)
            except OSError as error:
                raise self._failure("writing", offset + done, error) from None

    def flush(self, *, asked: bool = True) -> None:
        """See Payload."""
        if not self._read_only:
            self._check(lib.file_payload_flush(self.native, asked), "flushing", 0)

    def _check(self, code: int, doing: str, offset: int) -> None:
        if code:
            raise self._failure(doing, offset, OSError(code, os.strerror(code))) from None

    @property
    def native(self) -> object:
        """See Payload. It is made when it is first needed, for many only read."""
        with self._native_made:
            if self._descriptor < 0:
                raise PayloadError(f"payload {self._name} is closed", errno.EBADF)
            if self._native is None:
                others = [] if self._read_only else self._descriptions()
                self._native = lib.file_payload_new(self._descriptor, others, len(others), self._write_through)
                if self._native == ffi.NULL:
                    raise MemoryError
            return self._native

    def _descriptions(self) -> list[int]:
        """Return descriptors of further open file descriptions of the same file; none where that cannot be."""
        others: list[int] = []
        try:
            while len(others) < SYNCHRONOUS_WRITES:
                others.append(os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            log.debug("payload %s: synchronous writes are done %d at a time: %s", self._name, len(others) or 1, error)
        return others

    def fail_waiting(self) -> None:
        """See Payload. There is nothing to do: a system call on a file cannot be cut short."""

    def wait_again(self) -> None:
        """See Payload."""

    def resize(self, size: int) -> None:
        """See Payload. Only a regular file can be resized."""
        if self._read_only:
            raise ReadOnlyError(f"payload {self._name} is open for reading only")
        if not self.is_regular:
            raise PayloadError(f"payload {self._name} is a device, whose size is not ours to change", errno.EPERM)
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._failure("resizing", size, error) from None
        self._size = size

    def refresh_size(self) -> None:
        """See Payload."""
        try:
            self._size = os.lseek(self._descriptor, 0, os.SEEK_END)  # st_size is 0 on a block device
        except OSError as error:
            raise self._failure("looking for the end", 0, error) from None

    def modified_ns(self) -> int:
        """See Payload."""
        return os.fstat(self._descriptor).st_mtime_ns

    def close(self) -> None:
        """See Payload."""
        descriptor, self._descriptor = self._descriptor, -1
        native, self._native = self._native, None
        if native is not None and native != ffi.NULL:
            lib.file_payload_free(native)
        for lock in self._locks:
            os.close(lock)
        self._locks = []
        if descriptor >= 0:
            self._put_times_back(descriptor)
            try:
                os.close(descriptor)
            except OSError as error:  # of a file system that is gone; what matters has been said by `flush`
                log.warning("payload %s: closing: %s", self._name, os.strerror(error.errno or 0))

    def _put_times_back(self, descriptor: int) -> None:
        if self._times_ns is None:
            return
        try:
            os.utime(descriptor, ns=self._times_ns)
        except OSError as error:
            log.warning("payload %s: its times cannot be put back: %s", self._name, os.strerror(error.errno or 0))

    def _failure(self, doing: str, offset: int, error: OSError) -> PayloadError:
        message = f"payload {self._name}: {doing} at byte {offset}: {os.strerror(error.errno or errno.EIO)}"
        # a file system whose daemon is gone: to whoever uses the image, a disk that fails
        code = errno.EIO if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) else error.errno
        return PayloadError(message, code or errno.EIO)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _lock_everywhere(
    descriptor: int, name: str, opened: contextlib.ExitStack, *, writable: bool, window: tuple[int, int] | None
) -> list[int]:
    """Lock an open payload, and what it is called elsewhere; return the descriptors that hold the locks there."""
    lock_image(descriptor, name, writable=writable, window=window)
    locks = []
    try:
        for backing in backings(descriptor, writable=writable, window=window):
            opened.callback(os.close, backing.descriptor)
            locks.append(backing.descriptor)
            lock_image(backing.descriptor, f"{name} ({backing.name})", writable=writable, window=backing.window)
    except UnknownBacking as error:
        log.warning("payload %s is a loop device whose file cannot be locked against other users: %s", name, error)
    return locks


def _file_mode(name: str) -> int:
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - the path may be anything that open(2) takes
    except OSError as error:
        raise DeviceError(f"payload {name}: {os.strerror(error.errno or 0)}") from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a block device"
        raise DeviceError(f"payload {name} is {kind}")
    return mode


def _open(name: str, flags: int) -> int:
    try:
        return os.open(name, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"payload {name} is in use: the kernel has it mounted or mapped") from None
        writing_failed = flags & os.O_RDWR and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM)
        if writing_failed and os.access(name, os.R_OK):
            raise DeviceError(f"payload {name} cannot be written to; use --read-only") from None
        raise DeviceError(f"payload {name}: {os.strerror(error.errno or 0)}") from None
