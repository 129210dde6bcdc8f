"""The kernel's mount table: names are bytes, and four of them are escaped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lukshdrfs.mounts.mountinfo import MountLine, mount_lines, unescaped
from lukshdrfs.payload import in_use

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


def escaped(name: bytes) -> bytes:
    """Return a name as the kernel writes it (fs/proc_namespace.c, `mangle`)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)


def line_of(root: bytes, mountpoint: bytes, source: bytes, optional: bytes) -> bytes:
    """Return a line of the table."""
    names = b" ".join(map(escaped, (root, mountpoint)))
    return b"36 35 98:0 %b rw,noatime %b- ext3 %b rw,errors=continue\n" % (names, optional, escaped(source))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, NAMES, NAMES, st.sampled_from([b"", b"master:1 ", b"shared:3 master:1 "]))
def test_any_name_is_read_as_it_is(
    tmp_path: Path, root: bytes, mountpoint: bytes, source: bytes, optional: bytes
) -> None:
    """Whatever bytes it has, and however many fields come before the file system's."""
    table = tmp_path / "mountinfo"
    table.write_bytes(line_of(root, mountpoint, source, optional) * 2)
    found = MountLine(
        "98:0", os.fsdecode(root), os.fsdecode(mountpoint), "ext3", os.fsdecode(source), "rw,errors=continue"
    )
    assert list(mount_lines(table)) == [found, found]


@given(NAMES)
def test_escapes_are_undone(name: bytes) -> None:
    """And nothing else is changed."""
    assert os.fsencode(unescaped(os.fsdecode(escaped(name)))) == name


def test_a_mount_with_an_odd_name_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks whether a device is mounted hears of it, though another mountpoint has a carriage return."""
    table = tmp_path / "mountinfo"
    table.write_bytes(
        line_of(b"/", b"/odd\rname", b"odd", b"") + line_of(b"/", b"/mine", b"none", b"").replace(b"98:0", b"7:99")
    )
    monkeypatch.setattr(in_use, "mount_lines", lambda: mount_lines(table))
    assert in_use._mountpoint_of("7:99") == "/mine"
