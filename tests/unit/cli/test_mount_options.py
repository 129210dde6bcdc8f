"""The options of `-o`: each does what its long one does, and what is unknown is named."""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.cli.commands.mount import fstab_options as mount_options
from lukshdrfs.cli.commands.mount.fstab_options import FLAGS, VALUES, apply_options, split_options
from lukshdrfs.cli.main import build_parser
from lukshdrfs.errors import UsageError


def parsed(*words: str) -> argparse.Namespace:
    """Return the arguments of a `mount` command line, with its `-o` applied."""
    arguments = build_parser().parse_args(["mount", "payload", "mountpoint", *words])
    arguments.kernel_options = []
    apply_options(arguments, arguments.options)
    return arguments


def applied(*texts: str) -> argparse.Namespace:
    """Return the arguments that some `-o` give."""
    return parsed(*(word for text in texts for word in ("-o", text)))


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("ro", "read_only", True),
        ("read-only", "read_only", True),
        ("readonly", "read_only", True),
        ("rw", "read_only", False),
        ("header=/a/b", "header", ["/a/b"]),
        ("header=fd:3", "header", ["fd:3"]),
        ("header=a=b", "header", ["a=b"]),
        ("header-sha256=00ff", "header_sha256", "00ff"),
        ("header-uuid=1-2", "header_uuid", "1-2"),
        ("keyfile=/k", "key_file", "/k"),
        ("keyfile-offset=5", "keyfile_offset", 5),
        ("keyfile-size=6", "keyfile_size", 6),
        ("passphrase-file=/p", "passphrase_file", "/p"),
        ("volume-key-file=/v", "volume_key_file", "/v"),
        ("key-slot=7", "key_slot", 7),
        ("tries=2", "tries", 2),
        ("name=disk.img", "name", "disk.img"),
        ("format=qcow2", "payload_format", "qcow2"),
        ("cache=none", "cache", "none"),
        ("workers=9", "workers", 9),
        ("data-path=python", "data_path", "python"),
        ("offset=4096", "offset", 4096),
        ("offset=4K", "offset", 4096),
        ("size=1G", "size", 1 << 30),
        ("data-offset=4K", "offset", 4096),
        ("data-size=1G", "size", 1 << 30),
        ("fsname=a name", "fsname", "a name"),
        ("uid=1000", "uid", 1000),
        ("gid=1001", "gid", 1001),
        ("umask=022", "umask", 0o22),
        ("umask=0077", "umask", 0o77),
        ("umask=0", "umask", 0),
    ],
)
def test_our_own_options(option: str, name: str, value: object) -> None:
    """An option sets its argument, alone and among others, and no other argument."""
    expected = vars(parsed()) | {name: value}
    for texts in ([option], ["noauto", option], [f"nofail,{option},_netdev"]):
        found = vars(applied(*texts))
        assert {key: found[key] for key in found if key != "options"} == {
            key: expected[key] for key in expected if key != "options"
        }


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("ro", ["--read-only"]),
        ("header=h", ["--header", "h"]),
        ("header-sha256=0f", ["--header-sha256", "0f"]),
        ("header-uuid=u", ["--header-uuid", "u"]),
        ("keyfile=k", ["--key-file", "k"]),
        ("keyfile-offset=1", ["--keyfile-offset", "1"]),
        ("keyfile-size=1", ["--keyfile-size", "1"]),
        ("passphrase-file=p", ["--passphrase-file", "p"]),
        ("volume-key-file=v", ["--volume-key-file", "v"]),
        ("key-slot=1", ["--key-slot", "1"]),
        ("tries=1", ["--tries", "1"]),
        ("name=n", ["--name", "n"]),
        ("format=raw", ["--payload-format", "raw"]),
        ("cache=none", ["--cache", "none"]),
        ("workers=1", ["--workers", "1"]),
        ("data-path=auto", ["--data-path", "auto"]),
        ("offset=1M", ["--offset", "1M"]),
        ("data-offset=1M", ["--offset", "1M"]),
        ("data-size=1M", ["--size", "1M"]),
        ("size=1M", ["--size", "1M"]),
    ],
)
def test_an_option_does_what_its_long_one_does(option: str, words: list[str]) -> None:
    """`-o keyfile=k` and `--key-file k` are the same, and so on for all that have both forms."""
    short, long = vars(applied(option)), vars(parsed(*words))

    assert {key: short[key] for key in short if key != "options"} == {
        key: long[key] for key in long if key != "options"
    }


@pytest.mark.parametrize(
    "option", ["allow_other", "allow_root", "default_permissions", "nodev", "nosuid", "noexec", "noatime"]
)
def test_the_kernels_options_are_passed_on(option: str) -> None:
    """Options that are the kernel's or libfuse's go there as they are."""
    assert applied(f"ro,{option}").kernel_options == [option]


@pytest.mark.parametrize(
    "option",
    ["noauto", "auto", "_netdev", "nofail", "defaults", "user", "users", "x-systemd.requires=/a b", "x-gvfs-hide",
     "X-mount.mkdir", "comment=anything", "user=somebody", "X-any", "x-any.thing=1", "owner", "group", "nogroup",
     "diratime", "nodiratime", "iversion", "noiversion", "lazytime", "nolazytime", "loud", "silent", "mand", "nomand",
     "relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow"],
)  # fmt: skip
def test_other_programs_options_are_left_to_them(option: str) -> None:
    """Options for mount(8), fstab and systemd change nothing here, and do not reach the kernel."""
    found, expected = vars(applied(option)), vars(parsed())

    assert {**found, "options": []} == {**expected, "options": []}


@pytest.mark.parametrize(
    "option",
    ["unknown", "unknown=1", "RO", "ro=1", "allow_other=1", "header", "keyfile", "size", "cach=none", "x", "discard",
     " ro", "ro ", "umask", "=", "=ro", "key_slot=1", "header-timeout", "password=secret"],
)  # fmt: skip
def test_unknown_options_are_named(option: str) -> None:
    """An option that is nobody's is an error that names it."""
    with pytest.raises(UsageError) as caught:
        applied(f"ro,{option}")
    assert option in str(caught.value)


@pytest.mark.parametrize(
    "option",
    ["key-slot=x", "key-slot=", "key-slot=-1", "tries=1.5", "workers=many", "uid=no such user", "gid=", "umask=9",
     "umask=00777", "umask=", "offset=4X", "size=", "size=K", "size=-1", "keyfile-size=1X", "uid=\u0661",
     "size=\u0661K", "uid=" + "9" * 5000, "size=" + "9" * 5000 + "K"],
)  # fmt: skip
def test_values_that_cannot_be_read_are_named(option: str) -> None:
    """A value that is not what the option takes is an error that names the option."""
    with pytest.raises(UsageError) as caught:
        applied(option)
    assert option.partition("=")[0] in str(caught.value)


def test_headers_add_up() -> None:
    """Each `header=` is one more to try, in order, behind those of `--header`."""
    assert applied("header=a,ro,header=b", "header=c").header == ["a", "b", "c"]
    assert parsed("--header", "z", "-o", "header=a").header == ["z", "a"]


def test_the_last_of_two_counts() -> None:
    """Of options that contradict each other the last one counts, as for mount(8)."""
    assert not applied("ro,rw").read_only
    assert applied("rw", "ro").read_only
    assert applied("tries=1,tries=5").tries == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (",", []),
        (",,ro,,", ["ro"]),
        ("ro,rw", ["ro", "rw"]),
        (r"name=a\,b,ro", ["name=a,b", "ro"]),
        (r"name=a\\b", ["name=a\\b"]),
        (r"name=a\\,ro", ["name=a\\", "ro"]),
        (r"name=a\\\,b,ro", ["name=a\\,b", "ro"]),
        (r"name=\é", ["name=é"]),
        ("name=a b\tc", ["name=a b\tc"]),
    ],
)
def test_escapes(text: str, expected: list[str]) -> None:
    r"""`\,` is a comma in a value and `\\` a backslash; empty options are none (libfuse, lib/fuse_opt.c)."""
    assert split_options(text) == expected


OF_LIBMOUNT = {
    "async", "atime", "auto", "bind", "comment", "context", "defaults", "defcontext", "dev", "diratime", "dirsync",
    "encryption", "exec", "fscontext", "group", "helper", "iversion", "lazytime", "loop", "loud", "mand", "move",
    "_netdev", "noatime", "noauto", "nodev", "nodiratime", "noexec", "nofail", "nogroup", "noiversion", "nolazytime",
    "nomand", "noowner", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "nouser", "nousers", "offset", "owner",
    "private", "rbind", "relatime", "remount", "ro", "rootcontext", "rprivate", "rshared", "rslave", "runbindable",
    "rw", "shared", "silent", "sizelimit", "slave", "strictatime", "suid", "sync", "uhelper", "unbindable", "user",
    "users",
}  # fmt: skip
"""What mount(8) acts upon itself (libmount, libmount/src/optmap.c), besides `X-*`, `x-*` and `verity.*`."""


def test_mount8_takes_none_of_ours_for_itself() -> None:
    """Every option of ours that has a value has a name which mount(8) passes on, `offset=` alone having two."""
    named: dict[str, set[str]] = {}
    for name, (target, _) in VALUES.items():
        named.setdefault(target, set()).add(name)
    assert all(names - OF_LIBMOUNT for names in named.values())
    assert set(VALUES) & OF_LIBMOUNT == {"offset"}
    assert not any(name.startswith(("x-", "X-", "verity.")) for name in VALUES)
    assert set(FLAGS) & OF_LIBMOUNT == {"ro", "rw"}


@pytest.mark.parametrize(
    ("option", "meant"),
    [("keyflie=/k", "keyfile="), ("key-file=/k", "keyfile="), ("data_offset=1", "data-offset="),
     ("allow-other", "allow_other"), ("readonyl", "readonly"), ("headre=h", "header="), ("nosiud", "nosuid"),
     ("growabel", "growable"), ("no-auto", "noauto")],
)  # fmt: skip
def test_what_may_have_been_meant(option: str, meant: str) -> None:
    """An option that is nearly one of ours is answered with that one."""
    with pytest.raises(UsageError, match=f"did you mean '{re.escape(meant)}'"):
        applied(option)


def test_an_option_without_its_value() -> None:
    """What is missing is said."""
    with pytest.raises(UsageError, match="header=\\.\\.\\."):
        applied("header")


def test_sloppy() -> None:
    """With mount(8)'s -s, what is unknown is left out, and what is known is done; a wrong value stays wrong."""
    arguments: Any = parsed()
    apply_options(arguments, ["ro,unheard-of=1,tries=2"], sloppy=True)
    assert (arguments.read_only, arguments.tries) == (True, 2)
    with pytest.raises(UsageError):
        apply_options(arguments, ["tries=x"], sloppy=True)


def test_remount_says_what_to_do() -> None:
    """A mount cannot be changed; the way out is named."""
    with pytest.raises(UsageError, match="unmount"):
        applied("remount,ro")


def test_security_contexts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SELinux's contexts go on to the kernel, commas and all; without SELinux they are dropped, as mount(8) does."""
    context = 'context="system_u:object_r:tmp_t:s0:c127,c456"'
    monkeypatch.setattr(mount_options, "_SELINUX", str(tmp_path))
    assert applied(f"ro,{context},nosuid").kernel_options == ["nosuid"]
    (tmp_path / "enforce").touch()
    found = applied(f"ro,{context},fscontext=a:b:c,nosuid")
    assert found.kernel_options == [context.replace(",", "\\,"), "fscontext=a:b:c", "nosuid"]
    assert found.read_only


@pytest.mark.parametrize(
    ("text", "expected"),
    [('a="b,c",d', ['a="b,c"', "d"]), ('a=b"c,d"', ['a=b"c', 'd"'])],
)
def test_quotes(text: str, expected: list[str]) -> None:
    """A value in double quotes may have commas, as in fstab."""
    assert split_options(text) == expected


@pytest.mark.parametrize("text", ['fsname="x,ro', 'ro,fsname="', "ro,name=a\\"])
def test_what_is_cut_off_is_refused(text: str) -> None:
    """Options that came after a quote which is not closed would be part of its value, and a mount read-write."""
    with pytest.raises(UsageError, match=re.escape(text)):
        split_options(text)


@given(st.lists(st.text(alphabet=st.sampled_from("ab,\\= é"), min_size=1, max_size=8), max_size=5))
def test_every_value_can_be_written(values: list[str]) -> None:
    """Whatever a value is, with its backslashes and commas escaped it comes out again."""
    escaped = [value.replace("\\", "\\\\").replace(",", "\\,") for value in values]

    assert split_options(",".join(escaped)) == values


@given(st.text(max_size=40))
def test_no_text_does_anything_but_be_applied_or_refused(text: str) -> None:
    """Any text is a list of options or wrong usage."""
    arguments: Any = parsed()
    with contextlib.suppress(UsageError):
        apply_options(arguments, [text])
