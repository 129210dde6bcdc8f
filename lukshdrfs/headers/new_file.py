"""
Header files that appear whole: complete and on their storage before their name is there.

Others may act in the folder, so nothing is decided by a name. The folder is held by its descriptor, and so are the new
file and the one that it replaces; owner, mode and all else are set on descriptors; and before a name is taken, and
after, it is compared with what is held. Links in the place of any of them are followed by nobody.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.payload.writing import storage_failure, sync_descriptor, write_all

log = logging.getLogger(__name__)

_DATA_BITS = 0o666
"""Of a mode, what a header may have: nobody executes it, and nobody becomes another user or group by it."""

_RENAME_NOREPLACE = 1  # linux/fs.h
_NAME_ROOM = 200
"""Bytes of a name that its temporary one has, too; a name has at most 255."""

_ACL = "system.posix_acl_access"
_ACL_VERSION = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")  # linux/posix_acl_xattr.h: tag, permissions, whose
_ACL_READ_WRITE = 6
_NO_ACL = (errno.ENODATA, errno.EOPNOTSUPP)

_libc = ctypes.CDLL(None, use_errno=True)


def create_header_file(path: Path, data: bytes) -> None:
    """
    Write a header file, mode 0600, that is complete and on its storage before its name appears.

    Raises InUse if there is something of that name, a link included; PayloadError if it cannot be written; DeviceError
    if somebody else is changing the folder meanwhile.
    """
    what = f"header {path}"
    try:
        with _held_folder(path) as folder, _written_beside(folder, path.name, data, what) as (new, temporary):
            _give_name(folder, temporary, path)
            _check_name(folder, path.name, new, what)
            _sync_folder(folder)
    except OSError as error:
        raise storage_failure(what, error) from None


def replace_header_file(path: Path, data: bytes, replaced: int) -> None:
    """
    Write a header file in place of another, which `replaced` is a descriptor of; otherwise as `create_header_file`.

    A link to it stays one. The new file has the other's owner and group, and of its mode and access control list what
    is reading and writing. Where it may not have the owner or the group it is the caller's alone: mode 0600.
    """
    what = f"header {path}"
    target = Path(os.path.realpath(path))
    try:
        with _held_folder(target) as folder, _written_beside(folder, target.name, data, what) as (new, temporary):
            _take_after(new, replaced, what)
            sync_descriptor(new, what)
            _check_name(folder, target.name, replaced, what)
            _check_name(folder, temporary, new, what)
            os.replace(temporary, target.name, src_dir_fd=folder, dst_dir_fd=folder)
            _check_name(folder, target.name, new, what)
            _sync_folder(folder)
    except OSError as error:
        raise storage_failure(what, error) from None


@contextmanager
def _held_folder(path: Path) -> Iterator[int]:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def _sync_folder(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems without such a thing: fsync(2)
            raise


@contextmanager
def _written_beside(folder: int, name: str, data: bytes, what: str) -> Iterator[tuple[int, str]]:
    """Yield a new file of another name that has the data on its storage, by descriptor and name; the name goes."""
    shortened = os.fsdecode(os.fsencode(name)[:_NAME_ROOM])
    temporary = f".{shortened}.{secrets.token_hex(8)}"
    new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        os.fchmod(new, 0o600)  # the folder may have its own opinion, by a default access control list
        write_all(new, data, 0, what)
        sync_descriptor(new, what)
        yield new, temporary
    finally:
        with suppress(OSError):
            if _is(folder, temporary, new):
                os.unlink(temporary, dir_fd=folder)
        os.close(new)


def _is(folder: int, name: str, held: int) -> bool:
    """Whether a name in a folder is that of what is held; a link is not what it leads to."""
    return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(held))


def _check_name(folder: int, name: str, held: int, what: str) -> None:
    with suppress(FileNotFoundError):
        if _is(folder, name, held):
            return
    raise DeviceError(f"{what}: somebody else is changing its folder meanwhile; see what is there, and try again")


def _give_name(folder: int, temporary: str, path: Path) -> None:
    """Name the new file, without replacing anything."""
    try:
        os.link(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise _there_already(path) from None
    except OSError as error:
        log.debug("no hard links here (%s); renaming instead", error)
        _rename_to_free_name(folder, temporary, path)


def _rename_to_free_name(folder: int, temporary: str, path: Path) -> None:
    source, target = os.fsencode(temporary), os.fsencode(path.name)
    if _libc.renameat2(folder, source, folder, target, ctypes.c_uint(_RENAME_NOREPLACE)) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        raise _there_already(path)
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    # the file system can do neither: nothing keeps others from the name between this look and the renaming
    with suppress(FileNotFoundError):
        os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        raise _there_already(path)
    os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)


def _there_already(path: Path) -> InUse:
    return InUse(f"header {path} is there already; choose another name")


def _take_after(new: int, replaced: int, what: str) -> None:
    """Give the new file what the other one has of owner, group, mode, access control list and attributes."""
    before = os.fstat(replaced)
    try:
        acl = _acl(replaced)
        status = os.fstat(new)
        if (status.st_uid, status.st_gid) != (before.st_uid, before.st_gid):
            os.fchown(new, before.st_uid, before.st_gid)
        _set_acl(new, acl)
        if stat.S_IMODE(status.st_mode) != (wanted := stat.S_IMODE(before.st_mode) & _DATA_BITS):
            os.fchmod(new, wanted)
    except OSError as error:
        with suppress(OSError):
            os.fchmod(new, 0o600)
        now = os.fstat(new)
        if (now.st_uid, now.st_gid, now.st_mode) != (before.st_uid, before.st_gid, before.st_mode):
            reason = os.strerror(error.errno or 0)
            log.warning("%s: owner and mode cannot be kept (%s); it is open to nobody but its owner now", what, reason)
        return
    _copy_attributes(replaced, new)


def _acl(descriptor: int) -> bytes | None:
    """Return a file's access control list, without the right to execute; None if it has none."""
    try:
        found = os.getxattr(descriptor, _ACL)
    except OSError as error:
        if error.errno in _NO_ACL:
            return None
        raise
    entries = (
        _ACL_ENTRY.pack(tag, permissions & _ACL_READ_WRITE, whose)
        for tag, permissions, whose in _ACL_ENTRY.iter_unpack(found[_ACL_VERSION.size :])
    )
    return found[: _ACL_VERSION.size] + b"".join(entries)


def _set_acl(descriptor: int, acl: bytes | None) -> None:
    """Give a file an access control list, or none: what it has by itself is the folder's default."""
    if acl is not None:
        os.setxattr(descriptor, _ACL, acl)
        return
    try:
        os.removexattr(descriptor, _ACL)
    except OSError as error:
        if error.errno not in _NO_ACL:
            raise


def _copy_attributes(replaced: int, new: int) -> None:
    """Copy the user's own attributes and SELinux's label as far as that is possible; no capabilities, ever."""
    with suppress(OSError):
        for name in os.listxattr(replaced):
            if name.startswith("user.") or name == "security.selinux":
                with suppress(OSError):
                    os.setxattr(new, name, os.getxattr(replaced, name))
