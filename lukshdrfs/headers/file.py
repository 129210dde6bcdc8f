"""A header where it lies, opened for editing: a file of its own, the start of an attached volume, or a block device."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lukshdrfs.errors import DeviceError, HeaderError, InUse, PayloadError
from lukshdrfs.headers.lock import header_lock
from lukshdrfs.headers.new_file import replace_header_file
from lukshdrfs.headers.pin import HeaderPin
from lukshdrfs.headers.source import parse_from, source_descriptor
from lukshdrfs.luks.edit import HeaderEdit, Write
from lukshdrfs.luks.keys.free_memory import require_memory
from lukshdrfs.luks.model import Header
from lukshdrfs.payload.holding import hold_alone
from lukshdrfs.payload.writable import check_writable_device, not_writable
from lukshdrfs.payload.writing import sync_descriptor, write_all
from lukshdrfs.recognition import DescriptorSource, Signature, recognise

_COPIES = 4
"""How often the bytes of a header are in memory, beside the one that is there, while it is changed."""

_ATTEMPTS = 20
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


class HeaderFile:
    """
    A header that nobody else edits meanwhile. Use `open_header`.

    What is changed is changed in place, step by step, each step synced before the next: whoever has the file open or
    linked, or has only the right to write to it, finds the new header there.
    """

    def __init__(self, descriptor: int, name: str, header: Header) -> None:
        """Take over an open and locked descriptor."""
        self._descriptor = descriptor
        self.name = name
        """The path, as it was given."""
        self.header = header
        """As it is now."""

    @property
    def size(self) -> int:
        """Bytes of the file or device."""
        return os.lseek(self._descriptor, 0, os.SEEK_END)

    @property
    def is_regular(self) -> bool:
        """Whether it is a file, and no device."""
        return stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    @property
    def is_detached(self) -> bool:
        """Whether it is a file with nothing in it but the header: the data are elsewhere."""
        first = self.header.segments[0].offset
        return self.is_regular and (first == 0 or self.size <= first)

    def read(self, size: int) -> bytes:
        """Return what lies there, up to `size` bytes."""
        data = b""
        while len(data) < size and (piece := os.pread(self._descriptor, size - len(data), len(data))):
            data += piece
        return data

    def recognised(self) -> tuple[Signature, ...]:
        """Return what is recognised there, LUKS headers included; damaged things, too."""
        return recognise(DescriptorSource(self._descriptor), thorough=True)

    def replace(self, data: bytes) -> None:
        """
        Put another header in this one's place.

        A file with nothing but the header in it is replaced as a whole, at one moment. Elsewhere the new header is
        written over the old one, and a crash meanwhile leaves neither: keep a copy before.
        """
        if self.is_detached:
            replace_header_file(Path(self.name), data, self._descriptor)
        else:
            self.overwrite(data)

    def overwrite(self, data: bytes) -> None:
        """Write another header over what is there, whatever that is."""
        write_all(self._descriptor, data, 0, f"header {self.name}")
        sync_descriptor(self._descriptor, f"header {self.name}")

    def apply(self, edit: HeaderEdit) -> None:
        """
        Carry an edit out, and read the header again.

        Raises DeviceError if it cannot be written, HeaderError if what is there afterwards is not the new header,
        OutOfMemory, before anything is written, if there is too little for it.
        """
        require_memory(f"changing header {self.name}", _COPIES * len(self.header.area) // 1024)
        expected = edit.applied_to(self.header.area)  # before anything is written
        if edit.in_place:
            with _undisturbed():
                self._write_or_undo(edit)
        else:
            self._write(edit)
        self.header = parse_from(self._descriptor, self.name)
        if self.header.area != expected:
            raise HeaderError(f"header {self.name} does not read back as it was written; its storage is failing")

    def _write(self, edit: HeaderEdit) -> None:
        for step in edit.steps:
            for write in step:
                write_all(self._descriptor, write.data, write.offset, f"header {self.name}")
            sync_descriptor(self._descriptor, f"header {self.name}")

    def _write_or_undo(self, edit: HeaderEdit) -> None:
        """Write an edit that overwrites key material; if the storage fails, put back what was there."""
        try:
            self._write(edit)
        except PayloadError as error:
            area = self.header.area
            writes = [Write(write.offset, area[write.offset : write.end]) for step in edit.steps for write in step]
            try:
                self._write(HeaderEdit((tuple(writes),)))
            except PayloadError:
                lost = "what was there cannot be put back, and the keyslot may be lost"
                raise PayloadError(f"{error}; {lost}; restore a backup", error.errno) from None
            raise PayloadError(f"{error}; what was there has been put back", error.errno) from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put signals off that would end the program, until what must not be cut off is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def open_header(
    name: str, pin: HeaderPin | None = None, *, warn: bool = True, alone: bool = False
) -> Iterator[HeaderFile]:
    """
    Open a header for editing and keep every other program from it: cryptsetup's lock.

    Raises DeviceError if it cannot be opened for writing, InUse if it is locked, HeaderError if it is not valid or
    not the pinned one. `warn` as in `parse_from`, `alone` as in `locked_for_writing`.
    """
    with locked_for_writing(name, alone=alone) as descriptor:
        yield HeaderFile(descriptor, name, parse_from(descriptor, name, pin, warn=warn))


@contextmanager
def locked_for_writing(name: str, *, alone: bool = False) -> Iterator[int]:
    """
    Yield a descriptor of the place where a header is, or is to be, under the lock; otherwise as `open_header`.

    With `alone`, nobody may use the place for anything, mounted volumes whose header it is included, and nobody can
    begin to until it is written: `hold_alone`.
    """
    if source_descriptor(name) is not None:
        raise DeviceError(f"header {name}: only a file or device can be changed; name it by its path")
    for _ in range(_ATTEMPTS):
        descriptor = open_for_writing(name, "header", alone=alone)
        try:
            check_writable_device(descriptor, name, f"header {name}")
            with header_lock(descriptor, name, exclusive=True):
                if _is_still(descriptor, name):
                    yield descriptor
                    return
        finally:
            os.close(descriptor)
    raise InUse(f"header {name} is being replaced by another program all the time")


def open_for_writing(name: str, what: str, *, alone: bool = False) -> int:
    """Return a descriptor of an existing file or device. Raises DeviceError, and with `alone` InUse."""
    if alone:
        return hold_alone(name, what, os.O_RDWR)
    try:
        descriptor = os.open(name, os.O_RDWR)
    except OSError as error:
        raise not_writable(name, f"{what} {name}", error) from None
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(descriptor)
        raise DeviceError(f"{what} {name} is neither a file nor a block device")
    return descriptor


def _is_still(descriptor: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name))  # noqa: PTH116
    except OSError:
        return False
