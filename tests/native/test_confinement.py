"""Threads that serve requests can use what is open, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.native import compile_native

pytestmark = pytest.mark.needs("gcc", "pkg-config")

CAN = (
    "read", "write", "sync", "allocate", "memory", "send", "signal itself", "another thread opens",
    "connecting, socket", "connecting, open for reading", "connecting, thread",
)  # fmt: skip
CANNOT = (
    "open", "create", "unlink", "change mode", "socket", "start", "fork", "trace", "kill", "signal another process",
    "send to an address", "make code", "make memory code", "change a signal's action",
    "connecting, open for writing", "connecting, unlink", "connecting, start", "connecting, fork", "connecting, kill",
    "connecting, signal another process",
)  # fmt: skip


def test_what_a_confined_thread_can_do(tmp_path: Path) -> None:
    """It cannot open, make, start or signal anything; one that connects can that alone; others can all."""
    target = tmp_path / "probe"
    compile_native(target, Path(__file__).with_name("confinement_probe.c"), "threads/confinement")
    done = subprocess.run([target, tmp_path / "file"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    if "not confined" in found:
        pytest.skip(f"this kernel has no seccomp filters: {found['not confined']}")
    assert found == {**dict.fromkeys(CAN, "yes"), **dict.fromkeys(CANNOT, "EPERM")}
