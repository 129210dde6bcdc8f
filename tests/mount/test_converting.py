"""A volume that is converted in place while it is mounted and used."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.conversions import MODES, Conversion, conversion
from support.cryptsetup import try_cryptsetup
from support.image_load import Load
from support.mounts import Mounted, is_mounted, lukshdrfs
from support.processes import kill, wait_gone
from support.volumes import MIB
from support.waiting import wait_until

from lukshdrfs.headers import read_header
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Stage

pytestmark = [pytest.mark.needs("fuse", "cryptsetup")]

SIZE = 6 * MIB
BY_MODE = pytest.mark.parametrize("mode", MODES)
KILLS = int(os.environ.get("LUKSHDRFS_KILLS", "1"))
"""Rounds of each kind."""


def begun(mode: str, folder: Path, *options: str, size: int = SIZE) -> Conversion:
    """Return a volume whose conversion has begun."""
    made = conversion(mode, folder / "volume", size)
    made.ours("--init-only", *options)
    return made


def mounted(made: Conversion, *options: str) -> Mounted:
    """Mount it."""
    mountpoint = made.folder.parent / "mnt"
    mountpoint.mkdir(exist_ok=True)
    return Mounted(made.payload, *options, header=made.header, key_file=made.key, mountpoint=mountpoint)


def progress(mount: Mounted) -> dict[str, object]:
    """Return what `status` says of the conversion."""
    done = lukshdrfs("status", "--json", mount.mountpoint)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["conversion"]
    assert isinstance(told, dict)
    return told


def steer(made: Conversion, mount: Mounted, *options: str) -> None:
    """Ask something of the conversion of what is mounted."""
    done = lukshdrfs(made.mode, *options, mount.mountpoint)
    assert done.returncode == 0, done.stderr


def stage(made: Conversion) -> Stage | None:
    """Return how a conversion was left, None if it is over."""
    state = ReencryptionState.of(read_header(made.header))
    return None if state is None else state.stage


@pytest.mark.each_data_path
@BY_MODE
def test_it_is_converted_while_it_is_used(tmp_path: Path, mode: str) -> None:
    """What is written meanwhile is there, and what is not is as it was; cryptsetup takes what comes of it."""
    made = begun(mode, tmp_path)
    with mounted(made, "--convert", "--hotzone-size", "256K", "--rate", "4M") as mount:
        load = Load(mount.image, made.plain, random.Random(1))
        with load.running():
            wait_until(lambda: progress(mount)["state"] == "done", "the end")
        assert load.count > 100
        os.sync()
        found = mount.image.read_bytes()
        assert load.missing(found) == []
        assert progress(mount) == {"mode": mode, "done": SIZE, "size": SIZE, "state": "done"}
    assert stage(made) is None
    made.with_plain(found).check()
    if mode != "decrypt":
        made.with_plain(found).check_by_theirs()


def test_it_is_steered_by_the_mounts_owner(tmp_path: Path) -> None:
    """Mounted without --convert it waits; a pause comes after the step at hand, and what follows goes on."""
    made = begun("reencrypt", tmp_path)
    with mounted(made, "--hotzone-size", "64K") as mount:
        assert "user.lukshdrfs.conversion" in os.listxattr(mount.image)
        assert progress(mount) == {"mode": "reencrypt", "done": 0, "size": SIZE, "state": "paused"}
        steer(made, mount, "--rate", "2M", "--continue")
        wait_until(lambda: progress(mount)["done"], "the first step")
        steer(made, mount, "--pause")
        wait_until(lambda: progress(mount)["state"] == "paused", "the pause")
        before = progress(mount)["done"]
        assert mount.image.read_bytes() == made.plain
        assert progress(mount)["done"] == before
        done = lukshdrfs("decrypt", "--pause", mount.mountpoint)
        assert done.returncode == 1, "it is another conversion"
        steer(made, mount, "--rate", "0", "--hotzone-size", "1M")
        assert progress(mount)["state"] == "paused"
        steer(made, mount)  # as the command without options: go on
        wait_until(lambda: progress(mount)["state"] == "done", "the end")
    made.check()


@pytest.mark.parametrize("end", ["unmount", "lock", "SIGTERM"])
@pytest.mark.each_data_path
def test_it_ends_between_two_steps(tmp_path: Path, end: str) -> None:
    """Whatever ends the mount, the step at hand comes to its end first, and the next mount goes on."""
    made = begun("reencrypt", tmp_path)
    with mounted(made, "--convert", "--hotzone-size", "64K", "--rate", "1M") as mount:
        wait_until(lambda: progress(mount)["done"], "the first step")
        if end == "SIGTERM":
            os.kill(mount.pid, signal.SIGTERM)
        else:
            done = lukshdrfs(end, mount.mountpoint)
            assert done.returncode == 0, done.stderr
        wait_gone(mount.pid)
    assert stage(made) is Stage.CLEAN
    made.check_as_it_is()
    with mounted(made, "-o", "convert") as mount:
        wait_until(lambda: progress(mount)["state"] == "done", "the end")
        assert mount.image.read_bytes() == made.plain
    made.check()


@pytest.mark.root
def test_nobody_else_converts_what_is_mounted(tmp_path: Path) -> None:
    """Neither our command nor cryptsetup's gets at a half-converted volume under its mount."""
    made = begun("reencrypt", tmp_path)
    before = made.payload.read_bytes(), made.header.read_bytes()
    with mounted(made):
        done = lukshdrfs("reencrypt", *made.named)
        assert done.returncode == 5, done.stderr
        theirs = try_cryptsetup("reencrypt", "--resume-only", "-q", "--force-offline-reencrypt", *made.named)
        assert theirs.returncode == 5, theirs.stderr
    assert (made.payload.read_bytes(), made.header.read_bytes()) == before
    made.ours()
    made.check()


@pytest.mark.each_data_path
@pytest.mark.parametrize(
    ("mode", "resilience"), [("encrypt", "journal"), ("reencrypt", "checksum"), ("decrypt", "journal")]
)
def test_killed_at_any_moment(tmp_path: Path, mode: str, resilience: str) -> None:
    """Whatever was synced before the daemon was killed is there afterwards, and the conversion goes on."""
    rng = random.Random(f"{mode} {resilience}")
    made = begun(mode, tmp_path, "--resilience", resilience)
    for number in range(KILLS):
        if stage(made) is None:
            break
        with mounted(made, "--convert", "--hotzone-size", "128K", "--rate", "8M") as mount:
            load = Load(mount.image, made.plain, random.Random(number))
            with load.running():
                wait_until(lambda load=load: load.count, "the first write")  # type: ignore[misc]
                time.sleep(rng.random() * 0.3)
                load.end()
                kill(mount.pid)
            done = lukshdrfs("unmount", mount.mountpoint)
            assert done.returncode == 0, done.stderr
            assert not is_mounted(mount.mountpoint)
        if number % 2 and stage(made) is not None:
            made.repaired_by_theirs()
        found = made.payload.read_bytes() if mode == "decrypt" and stage(made) is None else made.read()
        assert load.missing(found) == []
        made = made.with_plain(found)
    if stage(made) is not None:
        made.ours()
    made.check()
