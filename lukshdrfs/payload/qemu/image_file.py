"""
A file or block device that an image is in, held by a descriptor.

Everything is decided by what is open: what kind of file it is, whose it is, what its header says. Its name may mean
another file at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from pathlib import Path
from typing import Self

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.payload.qemu.confined_process import Access, open_as
from lukshdrfs.payload.writable import check_writable_device

_NO_GROUP = 65534
"""Of `nogroup`: Linux, /proc/sys/kernel/overflowgid."""
# a pipe does not wait for its other end, a terminal does not become ours
_CAREFULLY = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class ImageFile:
    """An image that is open, and locked by nobody yet. Close it."""

    def __init__(self, descriptor: int, name: str, *, read_only: bool) -> None:
        """Take over an open descriptor; use `ImageFile.open` or `create`."""
        self._descriptor = descriptor
        self._name = name
        self._path = os.path.abspath(name)  # noqa: PTH100 - as it is: whoever uses it later may be elsewhere by then
        self._read_only = read_only

    @classmethod
    def open(cls, name: str, *, read_only: bool) -> Self:
        """
        Open an image; a device that is written to, exclusively.

        Raises DeviceError if it is not there, not readable or writable, or neither a regular file nor a block device;
        InUse for a device that the kernel has mounted or mapped.
        """
        flags = _CAREFULLY | (os.O_RDONLY if read_only else os.O_RDWR)
        try:
            image = cls._opened(os.open(name, flags), name, read_only=read_only)
        except OSError as error:
            if not read_only and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and _is_readable(name):
                raise DeviceError(f"payload {name} cannot be written to; use --read-only") from None
            raise _refusal(name, error) from None
        try:
            _check_owner_may(image)
        except BaseException:
            image.close()
            raise
        return image

    @classmethod
    def open_as_owner_of(cls, naming: ImageFile, name: str) -> Self:
        """
        Open a file that another image names as a part of it, for reading.

        We do not open for that image's owner what the owner cannot. Raises as `open`.
        """
        user, group = naming.owner
        try:
            if os.geteuid() == 0 and user != 0:
                descriptor = open_as((user, group), _groups(user, group), name, _CAREFULLY | os.O_RDONLY)
            else:
                descriptor = os.open(name, _CAREFULLY | os.O_RDONLY)
            return cls._opened(descriptor, name, read_only=True)
        except OSError as error:
            raise _refusal(name, error) from None

    @classmethod
    def create(cls, name: str) -> Self:
        """Make an empty file that only its user can open. Raises DeviceError, also if something has that name."""
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            return cls(os.open(name, flags, 0o600), name, read_only=False)
        except OSError as error:
            raise _refusal(name, error) from None

    @classmethod
    def _opened(cls, descriptor: int, name: str, *, read_only: bool) -> Self:
        """Return the image of a descriptor, which is closed if it is none."""
        try:
            if _kind(descriptor, name) == stat.S_IFBLK and not read_only:
                # the same device, now that it is known to be one: fails while it has another exclusive user, open(2)
                exclusive = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
                os.close(descriptor)
                descriptor = exclusive
                check_writable_device(descriptor, name, f"payload {name}", "use --read-only")
            return cls(descriptor, name, read_only=read_only)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def descriptor(self) -> int:
        """Open as long as this object is."""
        return self._descriptor

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self._name

    @property
    def path(self) -> str:
        """Where it was, absolute. Not to be opened: it may be another file by now."""
        return self._path

    @property
    def read_only(self) -> bool:
        """Whether it is open for reading only."""
        return self._read_only

    @property
    def access(self) -> Access:
        """What a program that works on it may do."""
        return Access.READS if self._read_only else Access.WRITES

    @property
    def owner(self) -> tuple[int, int]:
        """
        The uid of whoever it belongs to, and that user's own gid.

        Not the file's group: in a folder with set-group-ID, that may be one which the user is not in. A user whom this
        machine does not know has the group that has nothing.
        """
        user = os.fstat(self._descriptor).st_uid
        try:
            return user, pwd.getpwuid(user).pw_gid
        except KeyError:
            return user, _NO_GROUP

    @property
    def is_block_device(self) -> bool:
        """Whether it is a block device, not a regular file."""
        return stat.S_ISBLK(os.fstat(self._descriptor).st_mode)

    @property
    def size(self) -> int:
        """Bytes from its start to its end."""
        return os.lseek(self._descriptor, 0, os.SEEK_END)

    @property
    def allocated(self) -> int:
        """Bytes that it takes on its own file system."""
        return os.fstat(self._descriptor).st_blocks * 512

    def identity(self) -> tuple[int, int]:
        """Return device and inode number, by which two paths to one file are told."""
        status = os.fstat(self._descriptor)
        return status.st_dev, status.st_ino

    def read(self, size: int, offset: int = 0) -> bytes:
        """Return up to so many bytes. Raises DeviceError."""
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise _refusal(self._name, error) from None

    def remove(self) -> None:
        """Take its name away, if that is still its own."""
        with contextlib.suppress(OSError):
            named = os.lstat(self._path)
            if self._descriptor >= 0 and (named.st_dev, named.st_ino) == self.identity():
                Path(self._path).unlink()

    def close(self) -> None:
        """Let go of it. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _kind(descriptor: int, name: str) -> int:
    """Return which of the two kinds of files that hold an image it is. Raises DeviceError for all others."""
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        words = "a directory" if kind == stat.S_IFDIR else "neither a file nor a block device"
        raise DeviceError(f"payload {name} is {words}")
    return kind


def _check_owner_may(image: ImageFile) -> None:
    """Raise DeviceError if we are root and the owner, as whom QEMU will open the image, may not."""
    needed = stat.S_IRUSR if image.read_only else stat.S_IRUSR | stat.S_IWUSR
    mode = stat.S_IMODE(os.fstat(image.descriptor).st_mode)
    if os.geteuid() == 0 and mode & needed != needed:
        right, letter = ("read", "r") if image.read_only else ("write to", "rw")
        raise DeviceError(
            f"payload {image.name}: its owner may not {right} it (mode {mode:04o}), and root opens an image with its "
            f"owner's rights; chmod u+{letter} {image.name}"
        )


def _is_readable(name: str) -> bool:
    try:
        os.close(os.open(name, _CAREFULLY | os.O_RDONLY))
    except OSError:
        return False
    return True


def _refusal(name: str, error: OSError) -> DeviceError | InUse:
    if error.errno == errno.EBUSY:
        return InUse(f"payload {name} is in use: the kernel has it mounted or mapped")
    return DeviceError(f"payload {name}: {os.strerror(error.errno or 0)}")


def _groups(user: int, group: int) -> list[int]:
    """Return the groups of a user; one that this machine does not know has but the one given."""
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return [group]
    return os.getgrouplist(entry.pw_name, entry.pw_gid)
