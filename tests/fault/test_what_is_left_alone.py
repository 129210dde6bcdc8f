"""What commands must not touch: data and headers that nobody named, and what others made meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import Mounted, lukshdrfs
from support.processes import alive, kill, wait_gone
from support.tools import program
from support.volumes import MIB

CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return a key file."""
    path = tmp_path / "key"
    path.write_bytes(b"key")
    return path


def create(key: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `create` with a cheap KDF."""
    return lukshdrfs("create", *CHEAP, "--key-file", key, *arguments)


def test_a_window_is_for_detached_headers(key: Path, tmp_path: Path) -> None:
    """Without a header elsewhere, a part of an existing payload is not to be had: its start would be overwritten."""
    payload = tmp_path / "payload"
    assert create(key, "--size", "40M", payload).returncode == 0
    before = payload.read_bytes()
    for force in ([], ["--force"]):
        assert create(key, "--offset", "20M", "--size", "10M", *force, payload).returncode == 1
        assert payload.read_bytes() == before


def test_filling_begins_where_the_data_do(key: Path, tmp_path: Path) -> None:
    """`--wipe` with `--offset` leaves what is before the data alone: it may be another volume."""
    payload = tmp_path / "payload"
    content = random.Random(1).randbytes(12 * MIB)
    payload.write_bytes(content)
    assert create(key, "--header", tmp_path / "h", "--offset", "8M", "--wipe", payload).returncode == 0
    found = payload.read_bytes()
    assert found[: 8 * MIB] == content[: 8 * MIB]
    assert found[8 * MIB : 9 * MIB] != content[8 * MIB : 9 * MIB]


def test_export_of_a_shared_header_wipes_nothing(key: Path, tmp_path: Path) -> None:
    """Behind a header that several payloads share may be one of them: `--wipe` is refused, and nothing changes."""
    payload = tmp_path / "payload"
    assert create(key, "--size", "24M", payload).returncode == 0
    shared = ("--shared-header", payload, "--payload-name", "other", "--size", "1M", tmp_path / "other.img")
    assert create(key, *shared).returncode == 0
    before = payload.read_bytes()
    assert lukshdrfs("header", "export", payload, tmp_path / "out", "--wipe").returncode == 1
    assert payload.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_shared_header_is_not_its_own_payload(key: Path, tmp_path: Path) -> None:
    """The header's own file can only be a payload behind the header."""
    header = tmp_path / "header"
    assert create(key, "--header", header, "--size", "1M", tmp_path / "first.img").returncode == 0
    before = header.read_bytes()
    done = create(key, "--shared-header", header, "--payload-name", "x", "--wipe", "--force", header)
    assert done.returncode == 1
    assert header.read_bytes() == before


@pytest.mark.needs("fuse", "cryptsetup", "unshare")
@pytest.mark.root
def test_another_mount_namespace_is_named(mounted: Mounted) -> None:
    """A mount that lives on in another namespace: `unmount` says so at once, and does not wait for its end."""
    with subprocess.Popen([program("unshare"), "--mount", "sleep", "60"]) as sleeper:
        time.sleep(0.3)
        start = time.monotonic()
        done = lukshdrfs("unmount", mounted.mountpoint)
        assert done.returncode == 5
        assert f"(process {sleeper.pid})" in done.stderr
        assert time.monotonic() - start < 20
        assert alive(mounted.pid)
        sleeper.kill()
    wait_gone(mounted.pid)


@pytest.mark.needs("fuse", "cryptsetup")
def test_lock_of_a_daemon_that_dies(volume: LuksFiles) -> None:
    """A daemon that ends while it is asked to lock leaves no mount, and `lock` no loop."""
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        os.kill(mount.pid, signal.SIGSTOP)
        with subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -KILL {mount.pid}"]) as killer:
            done = lukshdrfs("lock", mount.mountpoint, timeout=30)
            killer.wait()
        assert done.returncode == 0, done.stderr
        wait_gone(mount.pid)
    with contextlib.suppress(OSError):
        kill(mount.pid)


@pytest.mark.needs("fuse", "cryptsetup")
def test_signals_after_a_lock_do_no_harm(mounted: Mounted) -> None:
    """A second lock, and a look at the payload's size, find a daemon that goes on answering its last user."""
    descriptor = os.open(mounted.image, os.O_RDONLY)
    try:
        assert lukshdrfs("lock", mounted.mountpoint).returncode == 0
        for number in (signal.SIGUSR1, signal.SIGHUP):
            os.kill(mounted.pid, number)
            time.sleep(0.2)
            assert alive(mounted.pid)
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(descriptor, 4096, 0)
    finally:
        os.close(descriptor)
    wait_gone(mounted.pid)


@pytest.mark.needs("cryptsetup")
def test_keys_of_a_shared_header_that_changed_meanwhile(key: Path, tmp_path: Path) -> None:
    """The keyslots that one passphrase opens are looked up under the lock: the last ones stay without --force."""
    header = tmp_path / "header"
    assert create(key, "--header", header, "--size", "1M", tmp_path / "one.img").returncode == 0
    assert create(key, "--shared-header", header, "--size", "1M", tmp_path / "two.img").returncode == 0
    assert lukshdrfs("key", "remove", header, "--key-slot", "1").returncode == 1
    assert [slot["id"] for slot in json.loads(lukshdrfs("key", "list", "--json", header).stdout)] == [0, 1]
