"""The quickstart is a program too."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.examples import run_example
from support.namespaces import LEAVE_FOREIGN_MOUNTS
from support.tools import program

pytestmark = pytest.mark.needs("fuse", "mkfs.ext4", "debugfs")


@pytest.mark.needs("loop")
def test_with_loop_device(tmp_path: Path) -> None:
    """With loop devices it makes a file system on one, and finds its file again."""
    shown, _ = run_example("quickstart.sh", folder=tmp_path)
    assert "losetup --find" in shown
    assert shown.count("treasure") == 2


@pytest.mark.root
@pytest.mark.needs("unshare")
def test_without_loop_device(tmp_path: Path) -> None:
    """Where loop devices are not to be had it does the same with e2fsprogs alone."""
    script = (
        f"set -e; {LEAVE_FOREIGN_MOUNTS}; mkdir old; mount --bind /dev old; mount -t tmpfs none /dev; "
        "for name in null zero random urandom fuse; do touch /dev/$name; mount --bind old/$name /dev/$name; done; "
        'umount -l old; rmdir old; exec "$0" "$@"'
    )
    script = script.replace("old", str(tmp_path / "old"))
    shown, _ = run_example(
        "quickstart.sh", folder=tmp_path, command=[program("unshare"), "--mount", "sh", "-c", script]
    )
    assert "losetup --find" not in shown
    assert "treasure" in shown
