"""Locking: nothing is served or cached any more, the key is gone, and what was acknowledged is safe."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, LuksFiles, volume_key
from support.devices import detach, loop_device
from support.mounts import LUKSHDRFS, Mounted, is_mounted, lukshdrfs, read_attribute
from support.namespaces import LEAVE_FOREIGN_MOUNTS
from support.processes import alive, memory_holds, wait_gone
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

import lukshdrfs as package

pytestmark = [pytest.mark.needs("fuse", "cryptsetup"), pytest.mark.each_data_path]

AT_ONCE = 1.0
"""Seconds within which reading must fail after a header has gone."""


@pytest.fixture
def small(make_volume: MakeVolume) -> LuksFiles:
    """Return a volume whose header fits a small file system."""
    return make_volume(XTS_512)


def watching(files: LuksFiles, header: Path) -> Mounted:
    """Mount a volume that locks when its header goes."""
    return Mounted(files.payload, "--lock-on-header-removal", header=header, key_file=files.key_file)


def refuses(descriptor: int) -> bool:
    """Whether an open image gives an error for reading, cached or not. Where Python served it, its daemon is gone."""
    try:
        os.pread(descriptor, 4096, 0)
    except OSError as error:
        return error.errno in {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}
    return False


@contextlib.contextmanager
def locks_soon(mount: Mounted) -> Iterator[None]:
    """Expect the mount to lock within a second of what the block does, though somebody has it open."""
    descriptor = os.open(mount.image, os.O_RDWR)
    try:
        os.pread(descriptor, MIB, 0)  # the kernel has it cached now
        yield
        wait_until(lambda: refuses(descriptor), "reading fails", timeout=AT_ONCE)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pwrite(descriptor, b"x", 0)
        wait_until(lambda: not is_mounted(mount.mountpoint), "the mount is gone")
        assert alive(mount.pid), "it answers whoever still has the image open"
        assert refuses(descriptor)
    finally:
        os.close(descriptor)
    wait_gone(mount.pid)


def test_lock_by_hand(mounted: Mounted) -> None:
    """`lock` ends the service at once, whoever has the image open; what was written is on the payload."""
    with locks_soon(mounted):
        assert lukshdrfs("lock", mounted.mountpoint).returncode == 0
        assert not is_mounted(mounted.mountpoint)


def test_what_was_acknowledged_is_there(volume: LuksFiles) -> None:
    """Data that was written before a lock is in the volume afterwards."""
    plain = random.Random(3).randbytes(MIB)
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        with mount.image.open("r+b", buffering=0) as image:
            image.write(plain)
            os.fsync(image.fileno())
            assert lukshdrfs("lock", mount.mountpoint).returncode == 0
        wait_gone(mount.pid)
    with package.open_volume(volume.payload, header=volume.header, passphrase=volume.secret) as opened:
        assert opened.pread(MIB, offset=0) == plain


LOCK_ALL = f"""
set -eu
program=$1 volumes=$2
{LEAVE_FOREIGN_MOUNTS}
for volume in $volumes; do
    mkdir "$volume/mnt"
    "$program" mount --header "$volume/header" --key-file "$volume/key" "$volume/payload" "$volume/mnt"
    mountpoint "$volume/mnt"
done
"$program" lock --all
for volume in $volumes; do if mountpoint --quiet "$volume/mnt"; then echo "$volume is not locked"; fi; done
"""


@pytest.mark.root
@pytest.mark.needs("unshare")
def test_lock_all(make_volume: MakeVolume, tmp_path: Path) -> None:
    """`lock --all` locks every mount: here all of a namespace, which has none but these."""
    folders = []
    for number in range(2):
        files, folder = make_volume(), tmp_path / str(number)
        folder.mkdir()
        for path, name in ((files.header, "header"), (files.key_file, "key"), (files.payload, "payload")):
            shutil.copy(path, folder / name)
        folders.append(folder)
    done = subprocess.run(
        [program("unshare"), "--mount", "--propagation=private", "sh", "-c", LOCK_ALL, "sh", LUKSHDRFS,
         " ".join(map(str, folders))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{folder}/mnt is a mountpoint\n" for folder in folders)


def test_lock_of_what_is_no_mount(tmp_path: Path) -> None:
    """One line, and the exit status of a wrong mountpoint; without any name, wrong usage."""
    for arguments, status in (([tmp_path], 4), ([], 1), (["--all", tmp_path], 1)):
        done = lukshdrfs("lock", *arguments)
        assert done.returncode == status
        assert len(done.stderr.splitlines()) == 1


def test_mapped_pages_go_too(mounted: Mounted) -> None:
    """A program that has the image mapped meets SIGBUS, not what was there."""
    code = """
import mmap, os, sys
with open(sys.argv[1], "rb") as image, mmap.mmap(image.fileno(), 4096, prot=mmap.PROT_READ) as pages:
    print(len(pages[:4096]), flush=True)
    sys.stdin.readline()
    print(pages[:4096])
"""
    with subprocess.Popen(
        ["python3", "-c", code, mounted.image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "4096\n"
        assert lukshdrfs("lock", mounted.mountpoint).returncode == 0
        output, _ = reader.communicate("go on\n", timeout=20)
        assert reader.returncode == -signal.SIGBUS
        assert output == ""
    wait_gone(mounted.pid)


# --- the header goes away -----------------------------------------------------------------------------------------


def test_header_file_removed(small: LuksFiles, tmp_path: Path) -> None:
    """Removing the header's file locks; so does renaming it away."""
    for number in range(2):
        header = Path(shutil.copy(small.header, tmp_path / f"header{number}"))
        with watching(small, header) as mount, locks_soon(mount):
            if number:
                header.rename(tmp_path / "elsewhere")
            else:
                header.unlink()


def test_folder_of_the_header_renamed(small: LuksFiles, tmp_path: Path) -> None:
    """A folder above the header that goes takes it away, too."""
    folder = tmp_path / "above" / "stick"
    folder.mkdir(parents=True)
    header = Path(shutil.copy(small.header, folder / "header"))
    with watching(small, header) as mount, locks_soon(mount):
        folder.parent.rename(tmp_path / "not above")


def test_header_replaced_in_one_step(small: LuksFiles, tmp_path: Path) -> None:
    """Another header by the same name, put there by a rename, is still a header: nothing is locked, until it goes."""
    header = Path(shutil.copy(small.header, tmp_path / "header"))
    with watching(small, header) as mount:
        for _ in range(3):
            Path(shutil.copy(small.header, tmp_path / "new")).rename(header)
            time.sleep(0.1)
            assert mount.image.read_bytes()
        with locks_soon(mount):
            header.unlink()


def test_removal_is_no_matter_unless_asked_for(small: LuksFiles, tmp_path: Path) -> None:
    """Without the option, the header may go."""
    header = Path(shutil.copy(small.header, tmp_path / "header"))
    with Mounted(small.payload, header=header, key_file=small.key_file) as mount:
        header.unlink()
        time.sleep(0.3)
        assert mount.image.read_bytes()


@pytest.mark.needs("loop", "mkfs.ext4")
def test_header_on_a_file_system_that_is_lazily_unmounted(small: LuksFiles, tmp_path: Path) -> None:
    """The header's file system goes from the mount table: that locks, though another program still uses it."""
    stick, folder = tmp_path / "stick.img", tmp_path / "stick"
    folder.mkdir()
    with stick.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run([program("mkfs.ext4"), "-q", stick], check=True)
    with loop_device(stick) as device:
        subprocess.run([program("mount"), device, folder], check=True)
        header = Path(shutil.copy(small.header, folder / "header"))
        with watching(small, header) as mount, header.open("rb"), locks_soon(mount):
            subprocess.run([program("umount"), "--lazy", folder], check=True)


@pytest.mark.needs("loop")
def test_header_on_a_device_that_is_detached(small: LuksFiles, tmp_path: Path) -> None:
    """A header on a loop device that loses its file is gone."""
    stick = Path(shutil.copy(small.header, tmp_path / "stick.img"))
    with loop_device(stick) as device, watching(small, Path(device)) as mount:
        with locks_soon(mount):
            detach(device)
        subprocess.run([program("losetup"), device, stick], check=True)  # for the block's end to detach


def test_what_cannot_go_away(volume: LuksFiles, tmp_path: Path) -> None:
    """An attached header, and one from a descriptor, cannot be watched: wrong usage, and nothing is mounted."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    for header in ([], ["--header", "-"]):
        done = lukshdrfs(
            "mount", "--lock-on-header-removal", *header, "--key-file", volume.key_file, volume.payload, folder
        )
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert not is_mounted(folder)


# --- time ---------------------------------------------------------------------------------------------------------


def test_max_time(volume: LuksFiles) -> None:
    """`--max-time` locks after that long, used or not."""
    with (
        Mounted(volume.payload, "-o", "max-time=0.6s", header=volume.header, key_file=volume.key_file) as mount,
        locks_soon(mount),
    ):
        wait_until(lambda: not is_mounted(mount.mountpoint), "its time is over")


def test_idle_timeout(volume: LuksFiles) -> None:
    """`--idle-timeout` locks when nothing was read or written for that long, and not before."""
    with Mounted(volume.payload, "--idle-timeout", "1", header=volume.header, key_file=volume.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR)
        for number in range(8):
            time.sleep(0.25)
            assert os.pwrite(descriptor, b"in use", number * 4096) == 6
        wait_until(lambda: not is_mounted(mount.mountpoint), "it was idle for too long")
        assert refuses(descriptor)
        os.close(descriptor)
        wait_gone(mount.pid)


def test_waiting_for_the_header(volume: LuksFiles, tmp_path: Path) -> None:
    """`--header-timeout` waits for a header that comes later; one that never comes is the usual error."""
    header, folder = tmp_path / "later", tmp_path / "mnt"
    folder.mkdir()
    done = lukshdrfs(
        "mount", "--header-timeout", "0.3", "--header", header, "--key-file", volume.key_file, volume.payload, folder
    )
    assert done.returncode == 4
    assert str(header) in done.stderr
    later = f"sleep 0.5; cp {volume.header} {header}.part; mv {header}.part {header}"
    with (
        subprocess.Popen(["sh", "-c", later]),
        Mounted(volume.payload, "--header-timeout", "20", header=header, key_file=volume.key_file) as mount,
    ):
        assert mount.image.read_bytes()


# --- the key ------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_nothing_of_the_key_is_left_in_memory(small: LuksFiles) -> None:
    """The key is in the daemon's memory while it serves; once it is locked, neither that nor plaintext is."""
    key = volume_key(small)
    secret = random.Random(8).randbytes(64)
    with Mounted(small.payload, header=small.header, key_file=small.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR | os.O_SYNC)
        os.pwrite(descriptor, secret * 512, 0)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, 64, 0) == secret
        halves = (key[:32], key[32:])
        assert all(memory_holds(mount.pid, half) for half in halves), "the search finds what is there"
        assert memory_holds(mount.pid, secret) or read_attribute(mount.image, "data_path") == "native"
        python = read_attribute(mount.image, "data_path") == "python"
        assert lukshdrfs("lock", mount.mountpoint).returncode == 0
        if python:  # its buffers cannot be wiped, so the process ends, whoever has the image open
            wait_gone(mount.pid)
        else:
            assert alive(mount.pid)
            for part in (*halves, *(half[:16] for half in halves), secret):
                assert not memory_holds(mount.pid, part)
        assert refuses(descriptor)
        os.close(descriptor)
        wait_gone(mount.pid)
