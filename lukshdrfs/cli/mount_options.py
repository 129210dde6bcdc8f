r"""
`-o OPT[,OPT...]`: the options of mount(8) and fstab, in the words of the long ones.

Some are ours, some go to the kernel, some are meant for mount(8), fstab or systemd and are none of our business. One
that is none of these is an error that names it. A comma in a value is written `\,`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from lukshdrfs.cli.quantities import group, number, seconds, size, user
from lukshdrfs.errors import UsageError


def _octal(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal number")
    return int(text, 8)


VALUES: dict[str, tuple[str, Callable[[str], object]]] = {
    "cache": ("cache", str),
    "data-path": ("data_path", str),
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
    "allow_other",
    "allow_root",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "dirsync",
    "sync",
    "async",
}
KERNEL |= {"atime", "noatime", "default_permissions"}

FLAGS = {
    "ro": ("read_only", True),
    "read-only": ("read_only", True),
    "readonly": ("read_only", True),
    "rw": ("read_only", False),
    "backing-chain": ("backing_chain", True),
    "force-header": ("force_header", True),
    "growable": ("growable", True),
    "lock-on-header-removal": ("lock_on_header_removal", True),
    "preserve-times": ("preserve_times", True),
}
"""Our own options without a value: the argument that they set, and what to."""

NOT_OURS = {
    "_netdev", "auto", "defaults", "group", "noauto", "nofail", "nouser", "nousers", "owner",
    "relatime", "norelatime", "user", "users",
}  # fmt: skip
_NOT_OURS_PREFIXES = ("x-", "X-", "comment=", "user=", "subtype=")


def split_options(text: str) -> list[str]:
    r"""Split at commas, but not at `\,`; undo the backslashes."""
    parts, escaped = [""], False
    for char in text:
        if escaped or char not in "\\,":
            parts[-1] += char
            escaped = False
        elif char == ",":
            parts.append("")
        else:
            escaped = True
    return [part for part in parts if part]


def apply_options(arguments: argparse.Namespace, texts: list[str]) -> None:
    """
    Set what `-o` says in the arguments of `mount`; the kernel's options go to `arguments.kernel_options`.

    Raises UsageError that names an option which is unknown, or whose value cannot be read.
    """
    for option in (option for text in texts for option in split_options(text)):
        _apply(arguments, option)


def _apply(arguments: argparse.Namespace, option: str) -> None:
    name, has_value, value = option.partition("=")
    if option in FLAGS:
        setattr(arguments, *FLAGS[option])
    elif option in KERNEL:
        arguments.kernel_options.append(option)
    elif has_value and name in VALUES:
        target, convert = VALUES[name]
        try:
            converted = convert(value)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"-o {name}=: {error}") from None
        if name == "header":
            arguments.header = [*(arguments.header or []), value]
        else:
            setattr(arguments, target, converted)
    elif option not in NOT_OURS and not option.startswith(_NOT_OURS_PREFIXES):
        raise UsageError(f"-o {option}: unknown option; see 'lukshdrfs mount --help'")
