"""Without /etc/mtab, as on minimal roots, fusermount3 unmounts nothing: that is said, and nothing is left mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.examples import EXAMPLES
from support.mounts import LUKSHDRFS
from support.ordinary_user import NUMBER, OrdinaryUser, ordinary_user
from support.processes import daemons
from support.tools import SYSTEM_PATH, program

pytestmark = [
    pytest.mark.needs("fuse", "cryptsetup", "unshare", "nsenter", "setpriv"),
    pytest.mark.root,
]

HIDE = 'cp -a /etc "$0" && rm "$0/mtab" && mount --bind "$0" /etc'


@pytest.fixture
def user(volume: LuksFiles, tmp_path: Path) -> Iterator[OrdinaryUser]:
    """Have an ordinary user with a volume."""
    with ordinary_user(tmp_path) as user:
        for name, source in (("header", volume.header), ("key", volume.key_file), ("payload", volume.payload)):
            (user.home / name).write_bytes(source.read_bytes())
            os.chown(user.home / name, NUMBER, NUMBER)
        user.run("mkdir", "plain")
        yield user


def in_namespace(user: OrdinaryUser, *words: str | Path) -> None:
    """Run something as root where the user is."""
    subprocess.run([program("nsenter"), f"--mount=/proc/{user.holder}/ns/mnt", *words], check=True)


def hide_mtab(user: OrdinaryUser, tmp_path: Path) -> None:
    """Take /etc/mtab away from the user."""
    in_namespace(user, "sh", "-c", HIDE, tmp_path / "etc")


def is_mounted(user: OrdinaryUser) -> bool:
    """Whether anything is mounted below the user's home."""
    return f"{user.home}/" in Path(f"/proc/{user.holder}/mountinfo").read_text(errors="replace")


def test_mounting_is_refused(user: OrdinaryUser, tmp_path: Path) -> None:
    """What could not be unmounted is not mounted; the message names the file, and how to make it."""
    hide_mtab(user, tmp_path)
    done = user.run(LUKSHDRFS, "mount", "--header", "header", "--key-file", "key", "payload", "plain")
    assert done.returncode == 4
    assert "/etc/mtab" in done.stderr
    assert "ln -sf" in done.stderr
    assert not is_mounted(user)


def test_unmounting_says_why_it_fails(user: OrdinaryUser, tmp_path: Path) -> None:
    """`unmount` gives fusermount3's own reason; `lock` wipes the key all the same."""
    done = user.run(LUKSHDRFS, "mount", "--header", "header", "--key-file", "key", "payload", "plain")
    assert done.returncode == 0, done.stderr
    hide_mtab(user, tmp_path)
    done = user.run(LUKSHDRFS, "unmount", "plain")
    assert done.returncode == 4
    assert "/etc/mtab" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    in_namespace(user, "umount", user.home / "plain")


def test_a_quickstart_that_fails_leaves_nothing(user: OrdinaryUser, tmp_path: Path) -> None:
    """Neither a mount nor a daemon, nor a file."""
    hide_mtab(user, tmp_path)
    folder = user.home / "tmp"
    user.run("mkdir", folder)
    done = user.run(
        "env", f"PATH={LUKSHDRFS.parent}{os.pathsep}{SYSTEM_PATH}", f"TMPDIR={folder}",
        "bash", EXAMPLES / "quickstart.sh", "--installed",
    )  # fmt: skip
    assert done.returncode != 0
    assert "/etc/mtab" in done.stderr
    assert not is_mounted(user)
    assert os.listdir(folder) == []
    assert not daemons(folder)
