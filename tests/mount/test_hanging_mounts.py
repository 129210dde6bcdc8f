"""Mounts that do not answer, or lie: they hold up and harm nobody, and what is known is said within seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import LUKSHDRFS, Mounted, fusermount, is_mounted, lukshdrfs
from support.namespaces import LEAVE_FOREIGN_MOUNTS
from support.ordinary_user import NUMBER, ordinary_user
from support.processes import wait_gone
from support.tools import program
from support.volumes import MakeVolume
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup")

LIAR = Path(__file__).parents[1] / "support/liar.py"
SECONDS = 20.0
"""More than any of these commands may take on a machine that is busy."""


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a daemon answer nothing while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that any signal would end."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        assert process.poll() is None, "nobody has sent it anything"
        process.kill()


@contextlib.contextmanager
def liar(mountpoint: Path, pid: int) -> Iterator[None]:
    """Mount what names this process as its daemon."""
    with subprocess.Popen([sys.executable, LIAR, mountpoint, str(pid)]) as process:
        try:
            wait_until(lambda: is_mounted(mountpoint) or process.poll() is not None, "it is mounted")
            assert process.poll() is None
            yield
        finally:
            process.kill()


# --- lies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["lock", "unmount", "status"])
def test_no_process_gets_a_signal_because_a_mount_names_it(
    command: str, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    """What calls itself lukshdrfs and names somebody else's process is found out; that process lives on."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with liar(mountpoint, bystander.pid):
        done = lukshdrfs(command, mountpoint, timeout=SECONDS)
        assert bystander.poll() is None
        if command == "lock":
            assert done.returncode == 4
            assert len(done.stderr.splitlines()) == 1
            assert str(mountpoint) in done.stderr
            assert is_mounted(mountpoint)
        if command == "status":
            assert f"mountpoint: {mountpoint}" in done.stdout, "what the kernel says is not for the mount to say"
        if is_mounted(mountpoint):
            fusermount(mountpoint, lazily=True)


@pytest.mark.root
@pytest.mark.needs("unshare", "nsenter", "setpriv")
def test_root_is_not_led_by_another_users_mount(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    """The same where an ordinary user lets everybody into a mount, and root locks all that there is."""
    with ordinary_user(tmp_path, "user_allow_other\n") as user:
        mountpoint = user.home / "mnt"
        inside: list[str | Path] = [program("nsenter"), f"--mount=/proc/{user.holder}/ns/mnt"]
        user.run("mkdir", mountpoint)
        with subprocess.Popen(
            [*user.command(), sys.executable, LIAR, mountpoint, str(bystander.pid), "allow_other"]
        ) as process:
            try:
                seen = f"user_id={NUMBER}"
                table = Path(f"/proc/{user.holder}/mountinfo")
                wait_until(
                    lambda: any(seen in line for line in table.read_text(errors="replace").splitlines()),
                    "it is mounted",
                )
                for arguments in (["lock", mountpoint], ["lock", "--all"]):
                    done = lukshdrfs(*arguments, command=[*inside, LUKSHDRFS], timeout=SECONDS)
                    assert done.returncode == 4
                    assert str(mountpoint) in done.stderr
                    assert bystander.poll() is None
            finally:
                process.kill()


@pytest.mark.root
@pytest.mark.needs("unshare", "nsenter", "setpriv")
def test_root_locks_another_users_mount(volume: LuksFiles, tmp_path: Path) -> None:
    """Root locks what an ordinary user has mounted, though FUSE does not let root in; a third user does not."""
    with ordinary_user(tmp_path) as user:
        for name, source in (("header", volume.header), ("key", volume.key_file), ("payload", volume.payload)):
            (user.home / name).write_bytes(source.read_bytes())
            os.chown(user.home / name, NUMBER, NUMBER)
        user.run("mkdir", "mnt")
        done = user.run(LUKSHDRFS, "mount", "--header", "header", "--key-file", "key", "payload", "mnt")
        assert done.returncode == 0, done.stderr
        pid = int(user.run("getfattr", "--only-values", "-n", "user.lukshdrfs.pid", "mnt/image").stdout or 0)
        done = user.run(LUKSHDRFS, "lock", user.home / "mnt", number=NUMBER + 1)
        assert done.returncode == 4
        inside = [program("nsenter"), f"--mount=/proc/{user.holder}/ns/mnt"]
        done = lukshdrfs("lock", user.home / "mnt", command=[*inside, LUKSHDRFS])
        assert (done.returncode, done.stderr) == (0, "")
        if pid:
            wait_gone(pid)


# --- silence ------------------------------------------------------------------------------------------------------


LOCK_ALL = f"""
set -u
program=$1 python=$2 first=$3 second=$4
{LEAVE_FOREIGN_MOUNTS}
for volume in "$first" "$second"; do
    mkdir "$volume/mnt"
    "$program" mount --header "$volume/header" --key-file "$volume/key" "$volume/payload" "$volume/mnt" || exit 99
done
pid=$("$python" -c 'import os, sys; print(os.getxattr(sys.argv[1], "user.lukshdrfs.pid").decode())' "$first/mnt/image")
kill -STOP "$pid"
"$program" lock --all
echo "status $?"
findmnt --noheadings --raw --output TARGET --types fuse.lukshdrfs
kill -CONT "$pid"
tries=0
while findmnt --types fuse.lukshdrfs >/dev/null && [ $((tries += 1)) -lt 100 ]; do sleep 0.1; done
findmnt --noheadings --raw --output TARGET --types fuse.lukshdrfs
"""


@pytest.mark.root
@pytest.mark.needs("unshare")
def test_lock_all_is_held_up_by_none(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Of two mounts one does not answer: the other is locked, the one is named, and locks as soon as it goes on."""
    folders = []
    for number in range(2):
        files, folder = make_volume(), tmp_path / str(number)
        folder.mkdir()
        for path, name in ((files.header, "header"), (files.key_file, "key"), (files.payload, "payload")):
            path.rename(folder / name)
        folders.append(folder)
    done = subprocess.run(
        [program("unshare"), "--mount", "--propagation=private", "sh", "-c", LOCK_ALL, "sh", LUKSHDRFS,
         sys.executable, *folders],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["status 5", f"{folders[0]}/mnt"]
    assert len(done.stderr.splitlines()) == 1
    assert f"{folders[0]}/mnt" in done.stderr


@pytest.mark.root
@pytest.mark.needs("unshare")
def test_a_copy_of_a_mount_in_another_namespace(mounted: Mounted) -> None:
    """`lock` there locks: the key is wiped, and both the mount and its copy go."""
    done = subprocess.run(
        [program("unshare"), "--mount", "--propagation=private", "sh", "-c",
         '"$0" lock "$1" && ! mountpoint --quiet "$1"', LUKSHDRFS, mounted.mountpoint],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mounted(mounted.mountpoint)
    wait_gone(mounted.pid)


def at_once(*commands: list[str | Path]) -> list[subprocess.CompletedProcess[str]]:
    """Run several commands at the same time, for each has to wait for its limit."""
    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(lambda words: lukshdrfs(*words, timeout=SECONDS), commands))


def test_a_daemon_that_does_not_answer_is_named(mounted: Mounted) -> None:
    """`status` and `unmount` end within seconds, and say whose daemon it is; lazily, it is unmounted."""
    with stopped(mounted.pid):
        status, unmount, below = at_once(
            ["status", mounted.mountpoint, "--json"], ["unmount", mounted.mountpoint], ["status", mounted.image]
        )
        one = json.loads(status.stdout)
        assert "has not answered" in one["state"]
        assert one["payload"] == str(mounted.payload)
        assert unmount.returncode == 5
        assert str(mounted.mountpoint) in unmount.stderr
        assert is_mounted(mounted.mountpoint)
        assert below.returncode == 4
        assert lukshdrfs("unmount", "--lazy", mounted.mountpoint, timeout=SECONDS).returncode == 0
        assert not is_mounted(mounted.mountpoint)
    wait_gone(mounted.pid)


MAPS = """
import ctypes, mmap, sys
with open(sys.argv[1], "r+b") as file:
    pages = mmap.mmap(file.fileno(), 4 << 20)
print(ctypes.addressof(ctypes.c_char.from_buffer(pages)) + (3 << 20), flush=True)
sys.stdin.readline()
more = mmap.mmap(-1, 1 << 20)
sys.stdin.readline()
"""


@pytest.mark.root
def test_another_process_that_hangs_holds_up_nothing(make_volume: MakeVolume) -> None:
    """A process hangs with its memory locked: who holds an unrelated mount is told all the same."""
    first, second = make_volume(), make_volume()
    with (
        Mounted(first.payload, header=first.header, key_file=first.key_file) as silent,
        Mounted(second.payload, header=second.header, key_file=second.key_file) as other,
        subprocess.Popen(
            [sys.executable, "-c", MAPS, silent.image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as maps,
        other.image.open("rb"),
    ):
        assert maps.stdin is not None
        assert maps.stdout is not None
        address = int(maps.stdout.readline())
        with stopped(silent.pid):
            # reading another's memory waits for the page with the memory's lock held ...
            reader = subprocess.Popen(
                ["dd", f"if=/proc/{maps.pid}/mem", "bs=4096", "count=1", "iflag=skip_bytes", f"skip={address}",
                 "of=/dev/null"], stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(0.5)
            maps.stdin.write(b"\n")  # ... and whoever wants to change it queues up, before all others
            maps.stdin.flush()
            time.sleep(0.5)
            hangs = subprocess.Popen(["ls", f"/proc/{maps.pid}/map_files"], stdout=subprocess.DEVNULL)
            time.sleep(0.5)
            try:
                assert hangs.poll() is None
                unmount, status = at_once(["unmount", other.mountpoint], ["status", other.mountpoint, "--json"])
                assert unmount.returncode == 5
                assert f"(process {os.getpid()})" in unmount.stderr
                assert any(f"(process {os.getpid()})" in holder for holder in json.loads(status.stdout)["held_by"])
            finally:
                os.kill(silent.pid, signal.SIGCONT)
                maps.kill()
                for process in (reader, hangs, maps):
                    process.wait(SECONDS)


@pytest.mark.root
def test_a_guard_that_was_stopped_holds_up_no_end(mounted: Mounted) -> None:
    """The process that ends the connection if the daemon is killed is ended itself when it does not end."""
    tasks = Path(f"/proc/{mounted.pid}/task").iterdir()
    guards = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    assert len(guards) == 1, "root's mount has one"
    daemon, guard = mounted.pid, guards.pop()
    with stopped(guard):
        began = time.monotonic()
        assert lukshdrfs("unmount", mounted.mountpoint).returncode == 0
        wait_gone(daemon)
        wait_gone(guard)
        assert time.monotonic() - began < SECONDS
