"""The quickstart is a program too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.mounts import LUKSHDRFS
from support.tools import SYSTEM_PATH, program

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.sh"

pytestmark = pytest.mark.needs("fuse", "mkfs.ext4", "debugfs")


def run_quickstart(folder: Path, *command: str) -> str:
    """Run it without a terminal, and return what it showed; nothing may be left in its folder."""
    done = subprocess.run(
        [*command, "bash", QUICKSTART, "--installed"],
        env={**os.environ, "PATH": f"{LUKSHDRFS.parent}{os.pathsep}{SYSTEM_PATH}", "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(folder) == []
    return done.stdout


@pytest.mark.needs("loop")
def test_with_loop_device(tmp_path: Path) -> None:
    """With loop devices it makes a file system on one, and finds its file again."""
    shown = run_quickstart(tmp_path)
    assert "losetup --find" in shown
    assert shown.count("treasure") == 2


@pytest.mark.root
@pytest.mark.needs("unshare")
def test_without_loop_device(tmp_path: Path) -> None:
    """Where loop devices are not to be had it does the same with e2fsprogs alone."""
    script = (
        "set -e; mkdir old; mount --bind /dev old; mount -t tmpfs none /dev; "
        "for name in null zero random urandom fuse; do touch /dev/$name; mount --bind old/$name /dev/$name; done; "
        'umount -l old; rmdir old; exec "$0" "$@"'
    )
    script = script.replace("old", str(tmp_path / "old"))
    shown = run_quickstart(tmp_path, program("unshare"), "--mount", "sh", "-c", script)
    assert "losetup --find" not in shown
    assert "treasure" in shown
