"""The life of a mount: how it starts, when it is ready, and how it ends and leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import (
    LUKSHDRFS,
    MOUNT_HELPER,
    Mounted,
    foreground,
    fusermount,
    is_mounted,
    lukshdrfs,
    mount_table,
    read_attribute,
)
from support.processes import alive, daemons, kill, wait_gone
from support.tools import program
from support.waiting import wait_until

pytestmark = [pytest.mark.needs("fuse", "cryptsetup"), pytest.mark.each_data_path]


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """Return an empty directory that is unmounted in the end."""
    folder = tmp_path / "mountpoint"
    folder.mkdir()
    yield folder
    if is_mounted(folder):
        fusermount(folder)


def options(files: LuksFiles) -> str:
    """Return what opens a volume, in the form that fstab has."""
    return f"header={files.header},keyfile={files.key_file}"


def opening(files: LuksFiles, mountpoint: Path) -> list[str]:
    """Return what opens a volume, in the form that a command line has."""
    return [
        *("--header", str(files.header), "--key-file", str(files.key_file)),
        *(str(files.payload), str(mountpoint)),
    ]


def descriptors(pid: int) -> set[str]:
    """Return what a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found


def ended(mountpoint: Path, pid: int) -> bool:
    """Tell whether neither the mount nor its daemon is there any more."""
    return not is_mounted(mountpoint) and not alive(pid)


# --- ways to start ----------------------------------------------------------------------------------------------


def test_short_form(volume: LuksFiles, mountpoint: Path) -> None:
    """`lukshdrfs PAYLOAD MOUNTPOINT -o …` mounts, as sshfs would, and several -o add up."""
    first, second = options(volume).split(",")
    done = lukshdrfs(volume.payload, mountpoint, "-o", first, "-o", f"{second},noauto,nofail,x-systemd.automount")

    assert done.returncode == 0, done.stderr
    assert (mountpoint / "image").stat().st_size == volume.payload.stat().st_size
    pid = int(read_attribute(mountpoint / "image", "pid"))
    fusermount(mountpoint)
    wait_gone(pid)


def test_mount_helper(volume: LuksFiles, mountpoint: Path) -> None:
    """mount(8) calls `mount.lukshdrfs` with `-o rw,…`; its read-only form makes a read-only mount."""
    done = lukshdrfs(volume.payload, mountpoint, "-o", f"ro,{options(volume)},dev,suid", command=[MOUNT_HELPER])

    assert done.returncode == 0, done.stderr
    assert "ro" in next(entry for entry in mount_table() if entry.mountpoint == mountpoint).options
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        os.open(mountpoint / "image", os.O_WRONLY)
    pid = int(read_attribute(mountpoint / "image", "pid"))
    fusermount(mountpoint)
    wait_gone(pid)


def test_relative_paths(volume: LuksFiles, mountpoint: Path) -> None:
    """Paths are those of the directory it was started in, also after the daemon has left it."""
    folder = volume.payload.parent
    done = subprocess.run(
        [
            LUKSHDRFS, "mount", "--header", volume.header.name, "--key-file", volume.key_file.name,
            volume.payload.name, os.path.relpath(mountpoint, folder),
        ],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pid = int(read_attribute(mountpoint / "image", "pid"))
    if os.geteuid() == 0:  # nobody else can look into a process that cannot be dumped
        assert not Path(f"/proc/{pid}/cwd").resolve().is_relative_to(folder)
    fusermount(mountpoint)
    wait_gone(pid)


def test_name_of_image(volume: LuksFiles, mountpoint: Path) -> None:
    """The file has the name it was given."""
    with Mounted(
        volume.payload, "--name", "disk.raw", header=volume.header, key_file=volume.key_file,
        mountpoint=mountpoint, name="disk.raw",
    ):  # fmt: skip
        assert os.listdir(mountpoint) == ["disk.raw"]


def test_file_as_mountpoint(volume: LuksFiles, tmp_path: Path) -> None:
    """An existing file can be the mountpoint; while it is mounted it is the image, and later it is itself again."""
    target = tmp_path / "file.img"
    target.write_bytes(b"below")

    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file, mountpoint=target) as mount:
        assert mount.image == target
        image = target.stat()
        assert stat.S_ISREG(image.st_mode)
        assert image.st_size == volume.payload.stat().st_size
        assert stat.S_IMODE(image.st_mode) == 0o600
        with target.open("r+b") as stream:
            stream.write(b"mounted")
        assert target.read_bytes()[:7] == b"mounted"
    assert target.read_bytes() == b"below"


def test_starts_without_terminal_and_releases_callers_files(volume: LuksFiles, mountpoint: Path) -> None:
    """The daemon has a session of its own, and nothing of its caller's is held open."""
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file, mountpoint=mountpoint) as mount:
        assert os.getsid(mount.pid) != os.getsid(0)
        if os.geteuid() == 0:
            targets = descriptors(mount.pid)
            ours = descriptors(os.getpid())
            assert not {target for target in targets if target.startswith("pipe:")} & ours
            assert str(volume.header) not in targets  # its medium can go away
            assert str(volume.key_file) not in targets


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_starts_without_standard_streams(closed: str, volume: LuksFiles, mountpoint: Path) -> None:
    """A caller that has closed its standard streams, as some daemons have, can mount; no file lands on theirs."""
    before = volume.payload.read_bytes()
    command = [str(LUKSHDRFS), "mount", *opening(volume, mountpoint)]
    done = subprocess.run(
        ["sh", "-c", f'"$0" "$@" {closed}', *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (mountpoint / "image").stat().st_size == len(before)
    assert lukshdrfs("unmount", mountpoint).returncode == 0
    assert volume.payload.read_bytes() == before


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_signal_ends_daemon_that_is_in_use(busy: bool, mounted: Mounted) -> None:
    """A signal takes the mount away at once; who has the image open is served until he closes it."""
    with contextlib.ExitStack() as stack:
        if busy:
            image = stack.enter_context(mounted.image.open("r+b", buffering=0))
        os.kill(mounted.pid, signal.SIGTERM)
        wait_until(lambda: not is_mounted(mounted.mountpoint), "the mount is taken away")
        if busy:
            assert image.write(b"late") == 4
            assert alive(mounted.pid)
    wait_gone(mounted.pid)


def test_second_mount_at_dead_one_is_refused(volume: LuksFiles, mountpoint: Path) -> None:
    """A mount whose daemon was killed still holds its mountpoint, until it is unmounted."""
    assert lukshdrfs("mount", *opening(volume, mountpoint)).returncode == 0
    pid = int(read_attribute(mountpoint / "image", "pid"))
    kill(pid)
    wait_gone(pid)
    wait_until(lambda: not os.path.isdir(mountpoint), "the kernel has forgotten the directory's attributes")  # noqa: PTH112

    done = lukshdrfs("mount", *opening(volume, mountpoint))
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_one_of_many_mounts_at_once_wins(volume: LuksFiles, tmp_path: Path) -> None:
    """Of several that want the same payload at the same time exactly one gets it; the others find it in use."""
    mountpoints = [_made(tmp_path / f"mountpoint{number}") for number in range(4)]
    with ThreadPoolExecutor(len(mountpoints)) as pool:
        done = list(pool.map(lambda where: lukshdrfs("mount", *opening(volume, where)), mountpoints))

    assert sorted(one.returncode for one in done) == [0, 5, 5, 5]
    winner = next(where for where in mountpoints if is_mounted(where))
    assert lukshdrfs("unmount", winner).returncode == 0


def test_ready_when_command_returns(volume: LuksFiles, mountpoint: Path) -> None:
    """The image can be read the moment the command has returned, and the payload is free when `unmount` has."""
    script = 'set -e; "$0" mount --header "$1" --key-file "$2" "$3" "$4"; test -r "$4/image"; "$0" unmount "$4"'
    for _ in range(20):
        done = subprocess.run(
            ["sh", "-c", script, LUKSHDRFS, volume.header, volume.key_file, volume.payload, mountpoint],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not daemons(mountpoint)
        assert not is_mounted(mountpoint)


def test_reading_mounts_share_payload(volume: LuksFiles, tmp_path: Path) -> None:
    """Two read-only mounts of one payload live side by side; a writer is refused beside them."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    with (
        Mounted(
            volume.payload,
            "--read-only",
            header=volume.header,
            key_file=volume.key_file,
            mountpoint=_made(first),
        ) as one,
        Mounted(
            volume.payload,
            "--read-only",
            header=volume.header,
            key_file=volume.key_file,
            mountpoint=_made(second),
        ) as two,
    ):
        assert one.image.read_bytes() == two.image.read_bytes()
        done = lukshdrfs(
            "mount", "--header", volume.header, "--key-file", volume.key_file, volume.payload, _made(third)
        )
        assert done.returncode == 5, done.stderr
    assert not is_mounted(third)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- ways to end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_unmounts_daemon(number: signal.Signals, mounted: Mounted) -> None:
    """A signal ends the daemon in order: what was written is kept, the mountpoint is free."""
    with mounted.image.open("r+b", buffering=0) as image:
        image.write(b"before the signal")

    os.kill(mounted.pid, number)
    wait_until(lambda: ended(mounted.mountpoint, mounted.pid), f"{number.name} ends the mount")
    assert os.listdir(mounted.mountpoint) == []
    mounted.__enter__()
    assert mounted.image.read_bytes()[:17] == b"before the signal"


def test_hangup_leaves_daemon_alone(mounted: Mounted) -> None:
    """A terminal that closes does not take the mount with it."""
    os.kill(mounted.pid, signal.SIGHUP)

    assert len(mounted.image.read_bytes()) == mounted.image.stat().st_size
    assert alive(mounted.pid)


@pytest.mark.parametrize("flag", ["--foreground", "-f"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_foreground_ends_with_success(flag: str, number: signal.Signals, volume: LuksFiles, mountpoint: Path) -> None:
    """In the foreground the program serves until a signal, and then ends with status 0."""
    arguments = ["mount", flag, *opening(volume, mountpoint)]
    with foreground(*arguments, mountpoint=mountpoint) as process:
        wait_until((mountpoint / "image").exists, "the image appears")
        assert int(read_attribute(mountpoint / "image", "pid")) == process.pid
        process.send_signal(number)
        assert process.wait(20) == 0
        assert not is_mounted(mountpoint)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_foreground_ends_when_unmounted(volume: LuksFiles, mountpoint: Path) -> None:
    """`fusermount3 -u` ends a program in the foreground too, in the short form as well."""
    with foreground(volume.payload, mountpoint, "-o", options(volume), "-f", mountpoint=mountpoint) as process:
        wait_until((mountpoint / "image").exists, "the image appears")
        fusermount(mountpoint)
        assert process.wait(20) == 0


def test_fusermount_ends_daemon(mounted: Mounted) -> None:
    """Unmounted by fusermount3, the daemon ends by itself."""
    fusermount(mounted.mountpoint)

    wait_gone(mounted.pid)


def test_unmount_waits_for_daemon(mounted: Mounted) -> None:
    """When `unmount` returns, the data are in the payload and the daemon has ended."""
    with mounted.image.open("r+b", buffering=0) as image:
        image.write(os.urandom(1 << 20))
    before = mounted.payload.stat().st_size

    done = lukshdrfs("unmount", mounted.mountpoint)
    assert done.returncode == 0, done.stderr
    assert ended(mounted.mountpoint, mounted.pid)
    assert mounted.payload.stat().st_size == before


def test_unmount_of_busy_image_is_refused(mounted: Mounted) -> None:
    """An image that somebody has open is in use: nothing is unmounted behind his back."""
    with mounted.image.open("rb") as image:
        done = lukshdrfs("unmount", mounted.mountpoint)
        assert done.returncode == 5, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert len(image.read()) == mounted.image.stat().st_size
    assert lukshdrfs("unmount", mounted.mountpoint).returncode == 0


def test_unmount_of_what_is_not_mounted(tmp_path: Path) -> None:
    """A directory that is no mount of ours is the wrong one, and is left alone."""
    for folder in (tmp_path, tmp_path / "missing", Path("/proc")):
        done = lukshdrfs("unmount", folder)
        assert done.returncode == 4, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert Path("/proc/self").exists()


def test_killed_daemon_leaves_payload_free(volume: LuksFiles, mountpoint: Path) -> None:
    """After kill -9 the lock is gone, `unmount` clears the dead mount, and what was synced is there."""
    arguments = opening(volume, mountpoint)
    assert lukshdrfs("mount", *arguments).returncode == 0
    pid = int(read_attribute(mountpoint / "image", "pid"))
    with (mountpoint / "image").open("r+b", buffering=0) as image:
        image.write(b"synced")
        os.fsync(image.fileno())
    kill(pid)
    wait_gone(pid)
    assert is_mounted(mountpoint)  # dead, but there

    done = lukshdrfs("unmount", mountpoint)
    assert done.returncode == 0, done.stderr
    assert not is_mounted(mountpoint)
    assert lukshdrfs("mount", *arguments).returncode == 0
    assert (mountpoint / "image").read_bytes()[:6] == b"synced"
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_lazy_unmount_serves_who_is_left(mounted: Mounted) -> None:
    """Unmounted lazily, the daemon serves those who have the image open, and ends when the last has closed it."""
    with mounted.image.open("r+b", buffering=0) as image:
        fusermount(mounted.mountpoint, lazily=True)
        image.write(b"late")
        os.fsync(image.fileno())
        assert os.pread(image.fileno(), 4, 0) == b"late"
        assert alive(mounted.pid)
    wait_gone(mounted.pid)


@pytest.mark.needs("mount")
def test_mount_program_finds_helper(volume: LuksFiles, mountpoint: Path) -> None:
    """mount(8) starts the program through fuse3's helper, as for a line of fstab."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    helper = Path("/sbin/mount.fuse3")
    if not helper.exists():
        pytest.skip(f"{helper} is missing: apt-get install fuse3")
    # mount(8) looks for programs on a PATH of its own, so it is named in full here
    done = subprocess.run(
        [program("mount"), "-t", "fuse3", "-o", options(volume), f"{LUKSHDRFS}#{volume.payload}", mountpoint],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pid = int(read_attribute(mountpoint / "image", "pid"))
    subprocess.run([program("umount"), mountpoint], check=True)
    wait_gone(pid)
