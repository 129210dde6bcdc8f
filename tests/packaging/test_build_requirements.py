"""What is missing for a build is told in one line, before anything is built."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = "lukshdrfs/build_requirements.py"


def hook(folder: Path, name: str, path: str) -> subprocess.CompletedProcess[str]:
    """Run one of the steps of a build, as pip does, on a copy of the sources, where only some programs are found."""
    source = folder / "source"
    if not source.exists():
        source.mkdir()
        for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, source)
        for tree in ("lukshdrfs", "docs"):
            shutil.copytree(ROOT / tree, source / tree, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = f"from setuptools import build_meta; build_meta.{name}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=source, env={**os.environ, "PATH": path, "CC": "gcc"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """Return a search path without any program."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return str(folder)


def test_what_pip_asks_first_tells_all(tmp_path: Path, empty: str) -> None:
    """Without compiler and pkg-config, both are in the one line that is said, and how to get them; no traceback."""
    done = hook(tmp_path, "prepare_metadata_for_build_wheel('.')", empty)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "cannot be built" in line)
    assert "a C compiler" in line
    assert "pkg-config" in line
    assert "install with: " in line
    assert "Traceback" not in done.stderr + done.stdout


def test_what_pip_asks_before_is_answered(tmp_path: Path, empty: str) -> None:
    """The packages that the build itself takes are asked for first; that would end in a traceback."""
    assert hook(tmp_path, "get_requires_for_build_wheel()", empty).returncode == 0


def test_a_source_distribution_needs_no_compiler(tmp_path: Path, empty: str) -> None:
    """What only packs files up takes none of it."""
    assert hook(tmp_path, "get_requires_for_build_sdist()", empty).returncode == 0


@pytest.mark.parametrize(
    ("missing", "package"),
    [("fuse3", "libfuse3-dev"), ("libgcrypt", "libgcrypt20-dev"), ("libcrypto", "libssl-dev")],
)
def test_a_library(missing: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that pkg-config does not know is told, with its package; those that it knows are not."""
    check = runpy.run_path(str(ROOT / CHECK))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "pkg-config").write_text(f'#!/bin/sh\ntest "$2" != {missing}\n')
    (tools / "pkg-config").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setitem(check["check"].__globals__, "_is_installed", lambda _name: False)
    monkeypatch.setitem(check["check"].__globals__, "_MANAGERS", {"apt-get": "apt-get install"})
    with pytest.raises(SystemExit) as caught:
        check["check"](["setup.py", "dist_info"])
    message = str(caught.value)
    assert message.count("missing") == 1
    assert message.endswith(f"apt-get install {package}")
    check["check"](["setup.py", "sdist"])


def test_headers_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Python.h no module of Python can be built."""
    check = runpy.run_path(str(ROOT / CHECK))
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    assert "Python's headers" in list(check["find_missing"]())


def test_nothing_is_missing_here() -> None:
    """Where the package has been built, the check is content."""
    check = runpy.run_path(str(ROOT / CHECK))
    assert list(check["find_missing"]()) == []
