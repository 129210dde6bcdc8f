r"""
`-o OPT[,OPT...]`: the options of mount(8) and fstab, in the words of the long ones.

Some are ours, some go to the kernel, some are meant for mount(8), fstab or systemd and are none of our business. One
that is none of these is an error that names it. A comma in a value is written `\,`, or the value is in double quotes.

None of ours has the name of one that mount(8) acts upon itself (libmount, libmount/src/optmap.c), or it would never
come here: `offset=` and `size=` are for those who call this program without it.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable

from lukshdrfs.cli.arguments import closest
from lukshdrfs.cli.quantities import group, number, seconds, size, user
from lukshdrfs.errors import UsageError

log = logging.getLogger(__name__)


def _octal(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal number")
    return int(text, 8)


VALUES: dict[str, tuple[str, Callable[[str], object]]] = {
    "cache": ("cache", str),
    "data-offset": ("offset", size),
    "data-path": ("data_path", str),
    "data-size": ("size", size),
    "format": ("payload_format", str),
    "fsname": ("fsname", str),
    "gid": ("gid", group),
    "header": ("header", str),
    "header-sha256": ("header_sha256", str),
    "header-timeout": ("header_timeout", seconds),
    "header-uuid": ("header_uuid", str),
    "idle-timeout": ("idle_timeout", seconds),
    "key-description": ("key_description", str),
    "key-slot": ("key_slot", number),
    "keyfile": ("key_file", str),
    "keyfile-offset": ("keyfile_offset", size),
    "keyfile-size": ("keyfile_size", size),
    "max-time": ("max_time", seconds),
    "name": ("name", str),
    "offset": ("offset", size),
    "payload-name": ("payload_name", str),
    "rate": ("rate", size),
    "payload-timeout": ("payload_timeout", seconds),
    "passphrase-file": ("passphrase_file", str),
    "size": ("size", size),
    "tries": ("tries", number),
    "truncate": ("truncate", str),
    "uid": ("uid", user),
    "umask": ("umask", _octal),
    "volume-key-file": ("volume_key_file", str),
    "workers": ("workers", number),
}
"""Our own options with a value: the argument that they set, and how their text is read."""

KERNEL = {
    "allow_other", "allow_root", "async", "atime", "default_permissions", "dev", "dirsync", "exec", "noatime", "nodev",
    "noexec", "nosuid", "suid", "sync",
}  # fmt: skip
"""Passed on to libfuse, which knows them."""

SECURITY_CONTEXTS = ("context", "defcontext", "fscontext", "rootcontext")
"""Passed on where there is SELinux; without it, mount(8) drops them, too."""
_SELINUX = "/sys/fs/selinux"

FLAGS = {
    "ro": ("read_only", True),
    "read-only": ("read_only", True),
    "readonly": ("read_only", True),
    "rw": ("read_only", False),
    "backing-chain": ("backing_chain", True),
    "convert": ("convert", True),
    "force": ("force", True),
    "force-header": ("force_header", True),
    "growable": ("growable", True),
    "lock-on-header-removal": ("lock_on_header_removal", True),
    "preserve-times": ("preserve_times", True),
}
"""Our own options without a value: the argument that they set, and what to."""

NOT_OURS = {
    "_netdev", "auto", "defaults", "group", "noauto", "nofail", "nogroup", "noowner", "nouser", "nousers", "owner",
    "user", "users",
}  # fmt: skip
_NOT_OURS_PREFIXES = ("x-", "X-", "comment=", "group=", "owner=", "user=", "subtype=", "helper=", "uhelper=")

WITHOUT_EFFECT = {
    "diratime", "iversion", "lazytime", "loud", "mand", "nodiratime", "noiversion", "nolazytime", "nomand",
    "norelatime", "nostrictatime", "nosymfollow", "relatime", "silent", "strictatime", "symfollow",
}  # fmt: skip
"""
Options of every file system (mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS") that change nothing about this one: it
has one file, no links, no time of access but what the payload's says, and is no quieter than any other.
"""


def split_options(text: str) -> list[str]:
    r"""
    Split at commas, but not at `\,` nor in a value in double quotes; undo the backslashes, keep the quotes.

    Raises UsageError for a quote that is not closed, for what comes after it would be part of the value, and for a
    backslash with nothing behind it.
    """
    parts, escaped, quoted = [""], False, False
    for char in text:
        if escaped:
            parts[-1] += char
            escaped = False
        elif char == '"' and (quoted or parts[-1].endswith("=")):
            parts[-1] += char
            quoted = not quoted
        elif char == "\\":
            escaped = True
        elif char == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    if quoted:
        raise UsageError(f"-o {text}: a double quote is not closed")
    if escaped:
        raise UsageError(f"-o {text}: there is nothing behind the last backslash")
    return [part for part in parts if part]


def apply_options(arguments: argparse.Namespace, texts: list[str], *, sloppy: bool = False) -> None:
    """
    Set what `-o` says in the arguments of `mount`; the kernel's options go to `arguments.kernel_options`.

    Raises UsageError that names an option which is unknown (unless `sloppy`), or whose value cannot be read.
    """
    for option in (option for text in texts for option in split_options(text)):
        if _apply(arguments, option):
            continue
        problem = _unknown(option)
        if not sloppy:
            raise UsageError(problem)
        log.info("%s; it is left out", problem)


def _apply(arguments: argparse.Namespace, option: str) -> bool:
    """Do what an option says; return whether there is such a one."""
    name, has_value, value = option.partition("=")
    if option in FLAGS:
        setattr(arguments, *FLAGS[option])
    elif option in KERNEL:
        arguments.kernel_options.append(option)
    elif has_value and name in VALUES:
        _set_value(arguments, name, _unquoted(value))
    elif has_value and name in SECURITY_CONTEXTS:
        if os.path.isdir(_SELINUX) and os.listdir(_SELINUX):  # noqa: PTH112, PTH208
            arguments.kernel_options.append(option.replace("\\", "\\\\").replace(",", "\\,"))
    elif option == "remount":
        raise UsageError(
            "-o remount: what is mounted cannot be changed; unmount it, and mount it again with the other options"
        )
    else:
        return option in NOT_OURS | WITHOUT_EFFECT or option.startswith(_NOT_OURS_PREFIXES)
    return True


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1] if quoted else value


def _set_value(arguments: argparse.Namespace, name: str, value: str) -> None:
    target, convert = VALUES[name]
    try:
        converted = convert(value)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"-o {name}=: {error}") from None
    if name == "header":
        arguments.header = [*(arguments.header or []), value]
    else:
        setattr(arguments, target, converted)


def _unknown(option: str) -> str:
    """Return what is wrong with an option that does not exist, and which one may have been meant."""
    name = option.partition("=")[0]
    if option in VALUES:
        return f"-o {option}: expected a value, '{option}=...'"
    names = [*(f"{value}=" for value in VALUES), *FLAGS, *KERNEL, *sorted(NOT_OURS | WITHOUT_EFFECT)]
    meant = closest(name, names)
    return f"-o {option}: unknown option; {meant}see 'lukshdrfs mount --help'"
