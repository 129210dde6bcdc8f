"""Threads that serve requests can use what is open, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.native import compile_native

pytestmark = pytest.mark.needs("gcc", "pkg-config")

CAN = ("read", "write", "sync", "allocate", "memory", "another thread opens")
CANNOT = ("open", "create", "unlink", "change mode", "socket", "start", "fork", "trace", "kill")


def test_what_a_confined_thread_can_do(tmp_path: Path) -> None:
    """It cannot open, make or start anything; the process's other threads still can."""
    target = tmp_path / "probe"
    compile_native(target, Path(__file__).with_name("confinement_probe.c"), "confinement")
    done = subprocess.run([target, tmp_path / "file"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    if "not confined" in found:
        pytest.skip(f"this kernel has no seccomp filters: {found['not confined']}")
    assert found == {**dict.fromkeys(CAN, "yes"), **dict.fromkeys(CANNOT, "EPERM")}
