"""What is about to be overwritten: held, looked at, said, kept where it is a header, and looked at again before."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lukshdrfs.cli.kept_copies import keep
from lukshdrfs.errors import DeviceError, HeaderError, InUse
from lukshdrfs.luks.header import MAX_EXTENT, PREFIX_SIZE, header_extent
from lukshdrfs.luks.luks2.layout import KEYSLOTS_SIZE, METADATA_SIZE
from lukshdrfs.payload import Payload
from lukshdrfs.payload.holding import hold_alone
from lukshdrfs.recognition import DescriptorSource, Signature, erase, names_of, recognise
from lukshdrfs.recognition.magics import Source
from lukshdrfs.recognition.openers import way_to_open

log = logging.getLogger(__name__)

_END = 1 << 20
"""Bytes at both ends that are compared: whoever makes a file system writes there."""
_USUAL_EXTENT = 2 * METADATA_SIZE + KEYSLOTS_SIZE
"""Bytes that are kept of a header that is too damaged to say how large it is."""


class Overwritten:
    """
    A part of a payload, or of a place for a header, that is about to be overwritten.

    It is looked at when this is made. What it is in must be held against other programs since before then.
    """

    def __init__(
        self, source: Source, what: str, start: int = 0, size: int | None = None, *, header_before: bool = False
    ) -> None:
        """
        Look at `size` bytes from byte `start` on; `what` they are in is named so in messages.

        If the part is a window (a size is given), a partition table before it does not count; with `header_before`, a
        LUKS header before it is the volume's own. Raises PayloadError if it cannot be read.
        """
        self._source = source
        self._what = what
        self._start = start
        self._size = source.size - start if size is None else size
        self._is_window = size is not None
        self._header_before = header_before
        self.found = self._look()
        """What is recognised in it, or reaches over it."""
        self._ends = self._digest()

    def _look(self) -> list[Signature]:
        found = list(recognise(self._source, self._start, self._size, thorough=True))
        if self._start or self._is_window:
            found += [one for one in recognise(self._source) if one not in found and not self._is_beside(one)]
        return found

    def _is_beside(self, signature: Signature) -> bool:
        """Whether something at byte 0 of the payload, or at its end, has nothing to do with the part."""
        return (self._is_window and signature.kind == "table") or (self._header_before and signature.is_luks)

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for place in sorted({self._start, max(self._start, self._start + self._size - _END)}):
            piece = bytearray(min(_END, self._start + self._size - place))
            self._source.read_into(memoryview(piece), place)
            digest.update(piece)
        return digest.digest()

    def refuse(self, *, force: bool, wipe: bool = False) -> None:
        """Raise DeviceError if there is something, unless it is forced; then say what becomes of it."""
        if not self.found:
            return
        names = names_of(self.found)
        if not force:
            way = way_to_open(one for one in self.found if one.name == "a qcow2 image")
            raise DeviceError(f"{self._what} holds data ({names}); --force overwrites it{f', or {way}' if way else ''}")
        if wipe:
            log.warning("%s: its data (%s) is overwritten", self._what, names)
        else:
            log.warning(
                "%s: the signatures of its data (%s) are erased; the rest stays readable until something is written "
                "over it, and --wipe does that at once", self._what, names,
            )  # fmt: skip

    def check_unchanged(self) -> None:
        """Raise InUse if somebody has written to it since it was looked at."""
        if self._digest() != self._ends:
            names = names_of(self._look())
            raise InUse(
                f"{self._what} is in use: another program has written to it meanwhile"
                f"{f', and it holds {names} now' if names else ''}; look at it, and run this again"
            )

    def keep_header(self, arguments: argparse.Namespace, target: str) -> None:
        """Save a LUKS header that is recognised at the payload's start or at the part's, as `header restore` does."""
        places = [one.offset for one in self.found if one.is_luks]
        if not places:
            return
        start = self._start if min(places) >= self._start else 0  # a damaged one is recognised by its second copy
        prefix = self._read(PREFIX_SIZE, start)
        try:
            extent = min(header_extent(prefix), MAX_EXTENT)
        except HeaderError:
            extent = _USUAL_EXTENT
        keep(arguments, target, self._read(extent, start))

    @property
    def size(self) -> int:
        """Bytes of the part."""
        return self._size

    def whole(self) -> bytes:
        """Return all that the part is in."""
        return self._read(self._source.size)

    def _read(self, size: int, start: int = 0) -> bytes:
        data = bytearray(min(size, self._source.size - start))
        self._source.read_into(memoryview(data), start)
        return bytes(data)

    def erase_signatures(self, write: Callable[[memoryview, int], object]) -> None:
        """
        Overwrite the magics of all that was found, so that nobody takes the place for what it was.

        Of a window, those inside: what lies beside it is somebody else's. A partition table before the data stays, too.
        """
        if not self.found:
            return
        erase(self._source, write, self._start, self._size)
        if self._is_window or not self._start:
            return
        for one in self.found:
            if one.offset < self._start and one.kind != "table" and not self._is_beside(one):
                write(memoryview(bytes(one.size)), one.offset)


def overwritten_payload(payload: Payload, start: int, size: int | None, *, header_before: bool = False) -> Overwritten:
    """Look at the part of a payload that is to be a volume; `size` is None up to its end."""
    return Overwritten(payload, f"payload {payload.name}", start, size, header_before=header_before)


class HeaderPlace:
    """Where a header goes: a new file, a file that is replaced, or a device."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        """Take over what `hold_alone` returned, None for a new file. Looks at it."""
        self.path = path
        self.descriptor = descriptor
        """Of what is there; None for a new file."""
        self.is_device = path.is_block_device()
        self._there: Overwritten | None = None
        if descriptor is not None:
            self._there = Overwritten(DescriptorSource(descriptor), f"header {path}")

    def refuse(self, *, force: bool) -> None:
        """Raise DeviceError if something is there, unless it is forced; then say what becomes of it."""
        if self._there is None:
            return
        if self.is_device:
            self._there.refuse(force=force)
            return
        if not force:
            raise DeviceError(
                f"header {self.path} is there already; --force replaces it, and what only it opens is lost"
            )
        size = self._there.size
        if size > MAX_EXTENT:
            raise DeviceError(f"header {self.path} has {size} bytes, and no header has; take it away first")
        log.warning("header %s is replaced", self.path)

    def make_way(self, arguments: argparse.Namespace) -> None:
        """Keep a copy of what is there, right before it is overwritten. Raises InUse if it has changed meanwhile."""
        if self._there is None:
            return
        self._there.check_unchanged()
        if self.is_device:
            self._there.keep_header(arguments, str(self.path))
        elif self._there.size:
            keep(arguments, str(self.path), self._there.whole())

    def erase_signatures(self, write: Callable[[memoryview, int], object]) -> None:
        """Overwrite the magics of what was found."""
        if self._there is not None:
            self._there.erase_signatures(write)


@contextmanager
def header_place(name: str, *, force: bool) -> Iterator[HeaderPlace]:
    """
    Yield the place of a header that is to be made, held against other programs until the end.

    Raises DeviceError if something is there and it is not forced, or no header can be there; InUse if it is in use.
    """
    path = Path(os.path.realpath(name))  # a link stays one
    if not path.parent.is_dir():
        raise DeviceError(f"header {path}: the directory {path.parent} is not there")
    if not os.path.lexists(path):
        if Path(name).is_symlink():
            raise DeviceError(f"header {name} is a link to {path}, which is not there; name that itself")
        yield HeaderPlace(path, None)
        return
    if not (path.is_file() or path.is_block_device()):
        raise DeviceError(f"header {path} is neither a regular file nor a block device")
    # a file is replaced, not written to
    descriptor = hold_alone(str(path), "header", os.O_RDWR if path.is_block_device() else os.O_RDONLY)
    try:
        place = HeaderPlace(path, descriptor)
        place.refuse(force=force)
        yield place
    finally:
        os.close(descriptor)
