"""The C code under the strictest warnings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.native import NATIVE, PACKAGE, WARNINGS
from support.tools import program

pytestmark = [pytest.mark.needs("gcc", "pkg-config")]


@pytest.mark.parametrize("room", NATIVE)
def test_it_builds_without_a_warning(room: str, tmp_path: Path) -> None:
    """At the optimisation that ships."""
    libraries = [program("pkg-config"), "--cflags", "libcrypto", "libgcrypt"]
    flags = subprocess.run(libraries, capture_output=True, text=True, check=True).stdout.split()
    sources = [PACKAGE / room / f"{name}.c" for name in NATIVE[room]]
    done = subprocess.run(
        [program("gcc"), *WARNINGS, "-O2", f"-I{PACKAGE}", *flags, "-c", *sources],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
