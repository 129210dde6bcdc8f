"""
What libblkid recognises, through an open descriptor and at any offset of it.

The library is the one that udev, mount(8) and cryptsetup ask. It is loaded when it is first needed: Debian and Ubuntu
have it on every system, for mount(8) needs it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass

from lukshdrfs.errors import DeviceError, PayloadError

_LIBRARY = "libblkid.so.1"

# blkid/blkid.h
_TYPE, _USAGE, _MAGIC, _BAD_CHECKSUM = 1 << 5, 1 << 7, 1 << 9, 1 << 10
_PARTITIONS_FORCE_GPT, _PARTITIONS_MAGIC = 1 << 1, 1 << 3

_MOST = 256
"""Signatures of one place; whoever writes more of them wants us to go on for ever."""


@dataclass(frozen=True, slots=True)
class Probed:
    """One superblock or partition table."""

    type: str
    """As blkid(8) says it: `ext4`, `crypto_LUKS`, `LVM2_member`, `gpt`, …"""
    is_table: bool
    """Whether it is a partition table."""
    offset: int
    """Where its magic is, in bytes from the start of the descriptor."""
    magic: bytes
    """The bytes there; empty where libblkid does not tell."""


def probe(descriptor: int, start: int, size: int, *, thorough: bool = False) -> list[Probed]:
    """
    Return what libblkid recognises in `size` bytes from byte `start` on, all of it.

    With `thorough`, what is damaged counts, too: superblocks with a wrong checksum, and a GPT of which only the backup
    is left. Raises PayloadError if it cannot be read, DeviceError if libblkid is not installed.
    """
    if size <= 0:
        return []
    library = _library()
    handle = library.blkid_new_probe()
    if not handle:
        raise MemoryError
    found: list[Probed] = []
    try:
        ctypes.set_errno(0)
        if library.blkid_probe_set_device(handle, descriptor, start, size) != 0:
            raise _failure(start)
        library.blkid_probe_enable_superblocks(handle, 1)
        library.blkid_probe_set_superblocks_flags(handle, _TYPE | _USAGE | _MAGIC | (_BAD_CHECKSUM if thorough else 0))
        library.blkid_probe_enable_partitions(handle, 1)
        library.blkid_probe_set_partitions_flags(handle, _PARTITIONS_MAGIC | (_PARTITIONS_FORCE_GPT if thorough else 0))
        while len(found) < _MOST and (answer := library.blkid_do_probe(handle)) == 0:
            found += _found_now(library, handle, start)
            # in the library's buffer alone: the same kind is looked for once more, without this one
            library.blkid_do_wipe(handle, 1)
        if len(found) < _MOST and answer < 0:
            raise _failure(start)
    finally:
        library.blkid_free_probe(handle)
    return found


def _failure(start: int) -> PayloadError:
    code = ctypes.get_errno()
    reason = os.strerror(code) if code else "it cannot be read"
    return PayloadError(f"looking for what is recognised from byte {start} on: {reason}", *([code] if code else []))


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        raise DeviceError(
            f"{_LIBRARY} is not installed, by which existing data is recognised; install libblkid1 (or libblkid)"
        ) from None
    handle, number, bytes_ = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.blkid_new_probe.restype = handle
    library.blkid_probe_set_device.argtypes = [handle, number, bytes_, bytes_]
    for name in ("enable_superblocks", "set_superblocks_flags", "enable_partitions", "set_partitions_flags"):
        getattr(library, f"blkid_probe_{name}").argtypes = [handle, number]
    library.blkid_do_probe.argtypes = [handle]
    library.blkid_do_wipe.argtypes = [handle, number]
    library.blkid_probe_lookup_value.argtypes = [
        handle, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t),
    ]  # fmt: skip
    library.blkid_free_probe.argtypes = [handle]
    library.blkid_free_probe.restype = None
    return library


def _found_now(library: ctypes.CDLL, handle: int, start: int) -> list[Probed]:
    """Return what the last step of probing has found."""
    found = []
    for type_name, prefix, is_table in (("TYPE", "SB", False), ("PTTYPE", "PT", True)):
        type_ = _text(_value(library, handle, type_name))
        if type_:
            magic = _value(library, handle, f"{prefix}MAGIC")
            offset = _text(_value(library, handle, f"{prefix}MAGIC_OFFSET"))
            found.append(Probed(type_, is_table, start + (int(offset) if offset else 0), magic))
    return found


def _value(library: ctypes.CDLL, handle: int, name: str) -> bytes:
    data, size = ctypes.c_void_p(), ctypes.c_size_t()
    if library.blkid_probe_lookup_value(handle, name.encode(), ctypes.byref(data), ctypes.byref(size)) != 0:
        return b""
    return ctypes.string_at(data, size.value) if data.value else b""


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("ascii", "replace")
