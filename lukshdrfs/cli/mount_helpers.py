"""
Run as mount(8)'s and umount(8)'s helper.

Sources: mount(8), "EXTERNAL HELPERS": `mount.SUFFIX SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`;
umount(8): `umount.SUFFIX {DIRECTORY|DEVICE} [-flnrv] [-N NAMESPACE] [-t TYPE]`; libmount (libmount/src/context_mount.c)
names the namespace by a file of mount(8)'s own process.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass, field

from lukshdrfs.cli.main import main
from lukshdrfs.cli.outcome import exit_status
from lukshdrfs.cli.terminal import logs
from lukshdrfs.errors import DeviceError, UsageError

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_VALUES = "Not"
"""The letters that have a value: the namespace, the options, the type."""


@dataclass(slots=True)
class _Call:
    """What such a program is called with."""

    letters: set[str] = field(default_factory=set)
    values: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    """Paths, and what nobody but people would say."""


def mount_helper(words: list[str] | None = None) -> int:
    """Run as mount(8)'s helper; return its exit status."""
    logs.to_terminal(0)
    return exit_status(lambda: _mount(sys.argv[1:] if words is None else words))


def umount_helper(words: list[str] | None = None) -> int:
    """Run as umount(8)'s helper; return its exit status."""
    logs.to_terminal(0)
    return exit_status(lambda: _umount(sys.argv[1:] if words is None else words))


def _mount(words: list[str]) -> int:
    call = _read(words, "sfnv")
    if "f" in call.letters:
        return 0  # all but the mount itself has been done, by mount(8)
    _enter(call)
    options = [word for value in call.values.get("o", []) for word in ("-o", value)]
    sloppy = ["--sloppy"] if "s" in call.letters else []
    verbose = ["--verbose"] if "v" in call.letters else []
    return main(["mount", *sloppy, *verbose, *options, *call.others])


def _umount(words: list[str]) -> int:
    call = _read(words, "flnrv")
    _enter(call)
    lazy = ["--lazy"] if "l" in call.letters else []
    verbose = ["--verbose"] if "v" in call.letters else []
    return main(["unmount", *lazy, *verbose, *call.others])


def _read(words: list[str], letters: str) -> _Call:
    call, rest = _Call(), list(words)
    while rest:
        word = rest.pop(0)
        if match := re.fullmatch(f"-([{letters}]*)([{_VALUES}])(.*)", word, re.DOTALL):
            call.letters |= set(match[1])
            if not match[3] and not rest:
                raise UsageError(f"-{match[2]} needs a value")
            call.values.setdefault(match[2], []).append(match[3] or rest.pop(0))
        elif re.fullmatch(f"-[{letters}]+", word):
            call.letters |= set(word[1:])
        else:
            call.others.append(word)
    return call


def _enter(call: _Call) -> None:
    """Go to the mount namespace that is asked for. All paths are looked up there."""
    for name in call.values.get("N", []):
        path = f"/proc/{name}/ns/mnt" if name.isdecimal() else name
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if libc.setns(descriptor, _CLONE_NEWNS) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DeviceError(f"mount namespace {name}: {os.strerror(error.errno or 0)}") from None
