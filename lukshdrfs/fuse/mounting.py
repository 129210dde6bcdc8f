"""The mount(2) of FUSE's, by libfuse, and what it says where that fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyfuse3

from lukshdrfs.errors import DeviceError
from lukshdrfs.fuse.filesystem import ImageFileSystem
from lukshdrfs.fuse.options import MountOptions

STANDARD_ERROR = 2


class _Option(str):
    """
    An option for libfuse, whatever bytes are in it: names of files are bytes.

    pyfuse3 takes text, and asks it for its bytes by this method, as ASCII.
    """

    __slots__ = ()

    def encode(self, _encoding: str = "", _errors: str = "") -> bytes:
        """Return the bytes of the file's name that this text stands for."""
        return super().encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def mount_source(source: str) -> str:
    r"""Return a source as an option's value: libfuse splits at commas that have no backslash before them."""
    return source.replace("\\", "\\\\").replace(",", "\\,")


def mount_file_system(file_system: ImageFileSystem, options: MountOptions, kernel_options: set[str]) -> None:
    with _captured_stderr() as printed:
        try:
            pyfuse3.init(file_system, options.mountpoint, {_Option(option) for option in kernel_options})
        except RuntimeError as error:
            failure: RuntimeError | None = error
        else:
            failure = None
    if failure:
        raise DeviceError(f"mountpoint {options.mountpoint}: {' '.join(printed) or failure}")


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """
    Keep what libfuse and fusermount3 print themselves: the user is told in one line of ours.

    The list that is yielded has the lines once the context is left.
    """
    printed: list[str] = []
    kept, memory = os.dup(STANDARD_ERROR), os.memfd_create("stderr")
    os.dup2(memory, STANDARD_ERROR)
    try:
        yield printed
    finally:
        os.dup2(kept, STANDARD_ERROR)
        printed += os.pread(memory, 1 << 16, 0).decode("utf-8", "replace").splitlines()
        os.close(kept)
        os.close(memory)
