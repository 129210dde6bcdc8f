"""An ordinary user does everything, and nobody else sees it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.examples import run_example
from support.mounts import LUKSHDRFS
from support.ordinary_user import NUMBER, SOMEBODY_ELSE, OrdinaryUser, ordinary_user

pytestmark = [pytest.mark.root, pytest.mark.needs("fuse", "nsenter", "setpriv", "unshare")]

ADMITTED = "user_allow_other"
NOT_ADMITTED = "#user_allow_other"
ROOT = 0


def mount(user: OrdinaryUser, volume: LuksFiles, *options: str) -> tuple[int, str]:
    """Have the user mount its copy of a volume at `vault`."""
    for path in (volume.header, volume.payload, volume.key_file):
        shutil.copy(path, user.home)
        os.chown(user.home / path.name, NUMBER, NUMBER)
    (user.home / "vault").mkdir()
    os.chown(user.home / "vault", NUMBER, NUMBER)
    done = user.run(
        LUKSHDRFS, "mount", *options, "--header", volume.header.name, "--key-file", volume.key_file.name,
        volume.payload.name, "vault",
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.needs("mkfs.ext4", "debugfs", "fsck.ext4", "fuse2fs")
@pytest.mark.parametrize("configuration", [NOT_ADMITTED, ADMITTED])
def test_example(configuration: str, tmp_path: Path) -> None:
    """The example runs as a user without any privilege; whether `allow_other` is for it, /etc/fuse.conf says."""
    with ordinary_user(tmp_path, configuration) as user:
        shown, errors = run_example("rootless.sh", folder=user.home, command=user.command())
    assert f"$ id -u\n{NUMBER}\n" in shown
    assert shown.count("treasure") == 1
    if configuration == ADMITTED:
        assert "image" in shown.rpartition("ls -l vault")[2]
    else:
        assert "allow_other needs the line 'user_allow_other' in /etc/fuse.conf" in errors
        assert "It does not." in shown


def test_nobody_else_sees_a_mount(volume: LuksFiles, tmp_path: Path) -> None:
    """Neither root nor another user can read, write or even see the image of an ordinary user."""
    with ordinary_user(tmp_path, NOT_ADMITTED) as user:
        assert mount(user, volume) == (0, "")
        assert user.run("head", "-c", "512", "vault/image").returncode == 0
        for number in (ROOT, SOMEBODY_ELSE):
            for command in (["head", "-c", "512", "vault/image"], ["ls", "vault"], ["touch", "vault/image"]):
                done = user.run(*command, number=number)
                assert done.returncode != 0, (number, command)
                assert "Permission denied" in done.stderr
        done = user.run(LUKSHDRFS, "unmount", "vault")
        assert done.returncode == 0, done.stderr


def test_allow_other_shows_a_mount_to_all(volume: LuksFiles, tmp_path: Path) -> None:
    """With `allow_other`, the modes count: root may do all, others what `umask` leaves them."""
    with ordinary_user(tmp_path, ADMITTED) as user:
        assert mount(user, volume, "-o", "allow_other,umask=0022") == (0, "")
        for number in (ROOT, SOMEBODY_ELSE):
            done = user.run("head", "-c", "512", "vault/image", number=number)
            assert done.returncode == 0, done.stderr
        done = user.run("dd", "if=/dev/zero", "of=vault/image", "count=1", "conv=notrunc", number=SOMEBODY_ELSE)
        assert "Permission denied" in done.stderr
        done = user.run("dd", "if=/dev/zero", "of=vault/image", "count=1", "conv=notrunc", number=ROOT)
        assert done.returncode == 0, done.stderr
        done = user.run(LUKSHDRFS, "unmount", "vault")
        assert done.returncode == 0, done.stderr


def test_shared_for_reading(volume: LuksFiles, tmp_path: Path) -> None:
    """`allow_other` on a read-only mount means that others read: so they can, and nobody writes."""
    with ordinary_user(tmp_path, ADMITTED) as user:
        assert mount(user, volume, "-r", "-o", "allow_other") == (0, "")
        done = user.run("stat", "-c", "%a", "vault", "vault/image", number=SOMEBODY_ELSE)
        assert done.stdout.split() == ["555", "444"], done.stderr
        assert user.run("head", "-c", "512", "vault/image", number=SOMEBODY_ELSE).returncode == 0
        assert user.run("touch", "vault/image", number=SOMEBODY_ELSE).returncode != 0
        assert user.run(LUKSHDRFS, "unmount", "vault").returncode == 0


@pytest.mark.parametrize("options", ["allow_other,umask=077", f"allow_other,uid={NUMBER}", f"allow_other,gid={NUMBER}"])
def test_who_may_read_can_be_said(options: str, volume: LuksFiles, tmp_path: Path) -> None:
    """With a mask, or an owner, nobody else reads a read-only mount, `allow_other` or not."""
    with ordinary_user(tmp_path, ADMITTED) as user:
        assert mount(user, volume, "-r", "-o", options) == (0, "")
        assert user.run("head", "-c", "512", "vault/image", number=SOMEBODY_ELSE).returncode != 0
        assert user.run("stat", "-c", "%a", "vault/image").stdout == "400\n"
        assert user.run(LUKSHDRFS, "unmount", "vault").returncode == 0


def test_allow_other_alone_shares_nothing_that_can_be_written(volume: LuksFiles, tmp_path: Path) -> None:
    """A mount that can be written to stays its owner's (and root's) until a mask or an owner says otherwise."""
    with ordinary_user(tmp_path, ADMITTED) as user:
        assert mount(user, volume, "-o", "allow_other") == (0, "")
        assert user.run("head", "-c", "512", "vault/image", number=SOMEBODY_ELSE).returncode != 0
        assert user.run("head", "-c", "512", "vault/image", number=ROOT).returncode == 0
        assert user.run(LUKSHDRFS, "unmount", "vault").returncode == 0


@pytest.mark.parametrize("option", ["allow_other", "allow_root"])
def test_allow_other_that_is_not_admitted(option: str, volume: LuksFiles, tmp_path: Path) -> None:
    """Without `user_allow_other` in /etc/fuse.conf, one line names both, and nothing is mounted."""
    with ordinary_user(tmp_path, NOT_ADMITTED) as user:
        status, errors = mount(user, volume, "-o", option)
        assert status != 0
        assert errors.count("\n") == 1
        assert f"{option} needs the line 'user_allow_other' in /etc/fuse.conf" in errors
        assert user.run("mountpoint", "-q", "vault").returncode != 0
