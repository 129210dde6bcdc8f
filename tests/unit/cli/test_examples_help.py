"""What the examples do with arguments, before they do anything else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.examples import EXAMPLES

SCRIPTS = sorted(file.name for file in EXAMPLES.glob("*.sh") if file.name not in ("common.sh", "arguments.sh"))


def run(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example where no program can be found but the shell's own tools; it may leave nothing."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    for tool in ("bash", "sed", "dirname", "readlink", "rm"):
        (bin_ / tool).unlink(missing_ok=True)
        (bin_ / tool).symlink_to(Path("/bin" if Path("/bin", tool).exists() else "/usr/bin", tool))
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    done = subprocess.run(
        [bin_ / "bash", EXAMPLES / name, *arguments],
        env={"PATH": str(bin_), "TMPDIR": str(temporary), "HOME": str(folder)},
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert os.listdir(temporary) == []
    return done


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--installed", "--help"]], ids=" ".join)
def test_help_does_nothing_else(name: str, arguments: list[str], tmp_path: Path) -> None:
    """It says what the script is for and how it is called: the comment at the script's head."""
    if name == "guest.sh" and len(arguments) > 1:
        pytest.skip("it has no such option")
    done = run(tmp_path, name, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"examples/{name}" in done.stdout
    assert not any(line.startswith("#") for line in done.stdout.splitlines())
    assert "set -e" not in done.stdout
    assert "source" not in done.stdout.split()


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("arguments", [["--instaled"], ["--installed", "--loud"], ["x", "y", "z"]], ids=" ".join)
def test_an_unknown_argument_is_refused(name: str, arguments: list[str], tmp_path: Path) -> None:
    """Nothing is set up, and nothing is done, for who has mistyped."""
    done = run(tmp_path, name, *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert name in line
    assert done.stdout == ""
