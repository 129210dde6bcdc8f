"""What can be known of a mount from outside: `status`, who holds it, and what systemd is told."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.devices import loop_device
from support.mounts import LUKSHDRFS, Mounted, foreground, is_mounted, lukshdrfs
from support.processes import kill, wait_gone
from support.tools import program
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup")


@pytest.fixture
def reader(mounted: Mounted) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has the image open."""
    with subprocess.Popen(["tail", "-f", mounted.image], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        yield process
        process.kill()


def test_status_tells_what_is_mounted(mounted: Mounted) -> None:
    """`status` has mountpoint, payload, image, size and pid; all mounts, or one."""
    one = json.loads(lukshdrfs("status", mounted.mountpoint, "--json").stdout)
    everything = json.loads(lukshdrfs("status", "--json").stdout)

    assert one in everything
    assert one["state"] == "serving"
    assert (one["mountpoint"], one["payload"]) == (str(mounted.mountpoint), str(mounted.payload))
    assert (one["image"], one["size"]) == (str(mounted.image), mounted.image.stat().st_size)
    assert (one["pid"], one["sector_size"], one["type"]) == (mounted.pid, 4096, "luks2")
    assert one["held_by"] == []
    assert str(mounted.image) in lukshdrfs("status").stdout


def test_status_of_what_is_no_mount(tmp_path: Path) -> None:
    """Exit status 4 and one line."""
    done = lukshdrfs("status", tmp_path)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


def test_status_of_a_dead_daemon(mounted: Mounted) -> None:
    """A mount whose daemon was killed says so; `unmount` cleans up, and the payload opens again."""
    kill(mounted.pid)
    wait_gone(mounted.pid)
    assert "gone" in json.loads(lukshdrfs("status", mounted.mountpoint, "--json").stdout)["state"]
    assert lukshdrfs("unmount", mounted.mountpoint).returncode == 0
    assert not is_mounted(mounted.mountpoint)


def test_unmount_says_who_holds_it(mounted: Mounted, reader: subprocess.Popen[bytes]) -> None:
    """A busy mount stays, with exit status 5 and the name of the process."""
    done = lukshdrfs("unmount", mounted.mountpoint)
    assert done.returncode == 5
    assert f"tail (process {reader.pid})" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert is_mounted(mounted.mountpoint)
    assert json.loads(lukshdrfs("status", mounted.mountpoint, "--json").stdout)["held_by"] == [
        f"tail (process {reader.pid})"
    ]


def test_lazy_unmount_serves_to_the_end(mounted: Mounted, reader: subprocess.Popen[bytes]) -> None:
    """With --lazy the name goes at once, and the daemon when the last user does."""
    done = lukshdrfs("unmount", "--lazy", mounted.mountpoint)
    assert done.returncode == 0
    assert f"tail (process {reader.pid})" in done.stderr
    assert not is_mounted(mounted.mountpoint)
    assert Path(f"/proc/{reader.pid}/fd").exists()
    reader.kill()
    wait_gone(mounted.pid)


@pytest.mark.needs("loop")
def test_loop_devices_hold_it(mounted: Mounted) -> None:
    """A loop device over the image is named."""
    with loop_device(mounted.image) as device:
        done = lukshdrfs("unmount", mounted.mountpoint)
        assert done.returncode == 5
        assert device in done.stderr


def test_sigterm_says_who_holds_it(volume: LuksFiles, tmp_path: Path) -> None:
    """A daemon that is told to end while somebody reads says who it is, and ends when that is done."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    arguments: list[str | Path] = ["mount", "--header", volume.header, "--key-file", volume.key_file, "-f"]
    with foreground(*arguments, volume.payload, mountpoint, mountpoint=mountpoint) as daemon:
        wait_until((mountpoint / "image").exists, "the image is there")
        with (mountpoint / "image").open("rb") as image:
            daemon.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_mounted(mountpoint), "its name is gone")
            assert daemon.poll() is None
            assert len(image.read()) == volume.payload.stat().st_size
        assert daemon.wait(20) == 0
        assert daemon.stderr is not None
        assert f"(process {os.getpid()})" in daemon.stderr.read().decode()


def test_systemd_is_told_when_the_image_can_be_read(volume: LuksFiles, tmp_path: Path) -> None:
    """With NOTIFY_SOCKET, READY=1 comes when the image can be read, and STOPPING=1 at the end (sd_notify(3))."""
    mountpoint, address = tmp_path / "mnt", tmp_path / "notify"
    mountpoint.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(20)
        with subprocess.Popen(
            [LUKSHDRFS, "mount", "--header", volume.header, "--key-file", volume.key_file, "-f", volume.payload,
             mountpoint],
            env={**os.environ, "NOTIFY_SOCKET": str(address)}, stdin=subprocess.DEVNULL,
        ) as daemon:  # fmt: skip
            try:
                message = manager.recv(4096).decode().splitlines()
                assert "READY=1" in message
                assert (mountpoint / "image").read_bytes()[:4096]
            finally:
                daemon.terminate()
            assert manager.recv(4096) == b"STOPPING=1"
            assert daemon.wait(20) == 0


@pytest.mark.needs("mkfs.ext4")
def test_in_the_foreground_on_a_terminal(volume: LuksFiles, tmp_path: Path) -> None:
    """The next steps are shown while it serves, with the sector size of what is there; Ctrl-C unmounts."""
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        subprocess.run([program("mkfs.ext4"), "-q", "-b", "4096", mount.image], check=True, capture_output=True)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [LUKSHDRFS, "mount", "-f", "--header", volume.header, "--key-file", volume.key_file, volume.payload,
         mountpoint],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    ) as daemon:  # fmt: skip
        os.close(theirs)
        try:
            shown = b""
            while b"To undo it" not in shown and select.select([ours], [], [], 20)[0]:
                shown += os.read(ours, 4096)
            assert f"--sector-size 4096 {mountpoint / 'image'}" in shown.decode()
            assert len((mountpoint / "image").read_bytes()) == volume.payload.stat().st_size
        finally:
            daemon.send_signal(signal.SIGINT)
        assert daemon.wait(20) == 0
    os.close(ours)
    assert not is_mounted(mountpoint)
