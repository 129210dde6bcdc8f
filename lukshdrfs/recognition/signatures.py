"""
What is recognised on a payload, or on the place where a header goes: libblkid's opinion and our own list, as one list.

Whoever is about to write asks here, about the bytes that would be lost. Ciphertext is taken for something less than
once in ten million times. libblkid alone would be wrong once in 20,000 times: for an HFS+ two bytes are enough to it,
and for an ext4 little more. So a short magic counts only in a sector that cannot be random bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lukshdrfs.errors import PayloadError
from lukshdrfs.recognition.blkid import Probed, probe
from lukshdrfs.recognition.magics import AT_A_DISTANCE, FILE_FORMATS, LUKS_HEADERS, Kind, Source, known_magics

_SHORT = 4
"""Bytes below which a magic is short."""
_CHECKED_BY_MORE = {"dos", "vfat"}
"""Types with short magics of which libblkid checks so much else that random bytes never have it."""
_SECTOR = 512
_LEAST_VALUES = 179
"""Different values of 512 random bytes: fewer once in 3e18 times, see block_scan.py."""

_END = 1 << 20
"""Bytes at both ends that have all the superblocks and partition tables that libblkid looks for, but rare ones."""
_MOST_ROUNDS = 16

LUKS_NAMES = {"crypto_LUKS", *(magic.what for magic in LUKS_HEADERS)}


@dataclass(frozen=True, slots=True)
class Signature:
    """Something that is recognised."""

    name: str
    """libblkid's type (`ext4`, `gpt`, `LVM2_member`), or what our list calls it (`a qcow2 image`)."""
    kind: Kind
    offset: int
    """Where its magic is, in bytes from the start of the payload."""
    size: int
    """Bytes of the magic; 0 where that is not known."""
    by_libblkid: bool = False
    """Whose opinion it is."""

    @property
    def is_luks(self) -> bool:
        """Whether it is of a LUKS header."""
        return self.name in LUKS_NAMES


def recognise(
    source: Source, start: int = 0, size: int | None = None, *, thorough: bool = False
) -> tuple[Signature, ...]:
    """
    Return everything that is recognised in a part of a source: `size` bytes from byte `start` on, all if left out.

    With `thorough`, what is damaged counts too, such as a GPT of which only the backup is left; that is for places that
    are about to be overwritten as a whole. Raises PayloadError if it cannot be read, DeviceError without libblkid.
    """
    size = source.size - start if size is None else size
    if size <= 0:
        return ()
    descriptor: int | None = getattr(source, "descriptor", None)
    if descriptor is not None:
        probed = probe(descriptor, start, size, thorough=thorough)
    else:
        probed = _probe_copy(source, start, size, thorough=thorough)
    types = {one.type for one in probed}
    distant = [magic for magic in AT_A_DISTANCE if magic.what not in types]
    magics = known_magics(source, (*LUKS_HEADERS, *FILE_FORMATS, *distant), start, size)
    found = [
        Signature(one.type, "table" if one.is_table else "content", one.offset, len(one.magic), by_libblkid=True)
        for one in probed
        if _counts(source, one, start, size)
    ]
    return (*found, *(Signature(magic.what, magic.kind, place, len(magic.magic)) for place, magic in magics))


def _probe_copy(source: Source, start: int, size: int, *, thorough: bool) -> list[Probed]:
    """Let libblkid look at a copy of both ends, in memory that is gone afterwards, of what has no descriptor."""
    copy = os.memfd_create("ends", os.MFD_CLOEXEC)
    try:
        os.truncate(copy, size)
        for offset in {0, max(0, size - _END)}:
            piece = bytearray(min(_END, size))
            source.read_into(memoryview(piece), start + offset)
            os.pwrite(copy, piece, offset)
        probed = probe(copy, 0, size, thorough=thorough)
    finally:
        os.close(copy)
    return [Probed(one.type, one.is_table, start + one.offset, one.magic) for one in probed]


def _counts(source: Source, probed: Probed, start: int, size: int) -> bool:
    """Whether there is more to it than two bytes that random data have now and then."""
    if not 0 < len(probed.magic) < _SHORT or probed.type in _CHECKED_BY_MORE:
        return True
    sector = probed.offset - (probed.offset - start) % _SECTOR
    data = bytearray(min(_SECTOR, start + size - sector))
    source.read_into(memoryview(data), sector)
    return len(set(data)) < _LEAST_VALUES


def names_of(signatures: Iterable[Signature]) -> str:
    """Return what they are, for a message; of the several signatures of a LUKS header or a GPT, one."""
    names = list(dict.fromkeys(signature.name for signature in signatures))
    if "gpt" in names and "PMBR" in names:
        names.remove("PMBR")
    luks = [name for name in names if name in LUKS_NAMES]
    return ", ".join(name for name in names if name not in luks[1:])


def erase(source: Source, write: Callable[[memoryview, int], object], start: int = 0, size: int | None = None) -> None:
    """
    Overwrite with zeros whatever magic is recognised in a part of a source, backups included; `write` takes an offset.

    The content stays, for whoever looks for it without a signature. Raises PayloadError, and what `write` raises.
    """
    for _ in range(_MOST_ROUNDS):
        found = [signature for signature in recognise(source, start, size, thorough=True) if signature.size]
        if not found:
            return
        for signature in found:
            write(memoryview(bytes(signature.size)), signature.offset)


class DescriptorSource:
    """An open file or block device, wherever it is kept."""

    def __init__(self, descriptor: int) -> None:
        """Look through a descriptor, which stays the caller's."""
        self.descriptor = descriptor
        """As of Payload."""

    @staticmethod
    def fits(descriptor: int) -> bool:
        """Whether it is something that has bytes at offsets."""
        mode = os.fstat(descriptor).st_mode
        return stat.S_ISREG(mode) or stat.S_ISBLK(mode)

    @property
    def size(self) -> int:
        """See Source."""
        return os.lseek(self.descriptor, 0, os.SEEK_END)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See Source. Raises PayloadError."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise PayloadError(
                    f"reading at byte {offset + done}: {os.strerror(error.errno or errno.EIO)}",
                    error.errno or errno.EIO,
                ) from None
            if count == 0:
                raise PayloadError(f"it ends at byte {offset + done}")
            done += count


class _Function:
    """A source by a function that fills a buffer from an offset on."""

    def __init__(self, size: int, read_into: Callable[[memoryview, int], object]) -> None:
        self.size = size
        self._read_into = read_into

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._read_into(buffer, offset)


def known_signature_of(size: int, read_into: Callable[[memoryview, int], object]) -> str:
    """Return what is on something by its size in bytes and a function that fills a buffer; empty if nothing is."""
    return names_of(recognise(_Function(size, read_into)))
