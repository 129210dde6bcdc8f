"""`lukshdrfs resize`: a mounted volume becomes longer while it is used."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, LuksFiles, decrypted
from support.devices import loop_device
from support.mounts import LUKSHDRFS, Mounted, foreground, lukshdrfs
from support.processes import wait_gone
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

pytestmark = pytest.mark.needs("fuse", "cryptsetup")

SECTOR = 4096
WISH = b'{"size": 8388608, "fill": true, "shrink": false}'
"""What the command asks for, by an attribute of the mountpoint."""


def resize(mount: Mounted, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `lukshdrfs resize`."""
    return lukshdrfs("resize", mount.mountpoint, *words)


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_it_lengthens_a_mounted_volume(data_path: str, volume: LuksFiles) -> None:
    """Without any option of the mount, and for who has the image open: the new part is zeros, written as all else."""
    with (
        Mounted(volume.payload, "--data-path", data_path, header=volume.header, key_file=volume.key_file) as mount,
        mount.image.open("r+b", buffering=0) as image,
    ):
        os.pwrite(image.fileno(), b"stays", 4 * MIB - 5)
        assert resize(mount, "6M").returncode == 0
        assert os.fstat(image.fileno()).st_size == volume.payload.stat().st_size == 6 * MIB
        assert os.pread(image.fileno(), 3 * MIB, 4 * MIB - 5) == b"stays" + bytes(2 * MIB)
        os.pwrite(image.fileno(), b"at the new end", 6 * MIB - 14)
    assert bytes(SECTOR) not in volume.payload.read_bytes()[4 * MIB :], "a hole would show what is unused"
    assert decrypted(volume)[4 * MIB - 5 :] == b"stays" + bytes(2 * MIB - 14) + b"at the new end"


def test_it_takes_what_the_payload_has_got(mounted: Mounted, volume: LuksFiles) -> None:
    """Without a size, it is as long as somebody else has made the payload, in whole sectors, and filled with zeros."""
    os.truncate(volume.payload, 6 * MIB + 512)
    assert resize(mounted).returncode == 0
    assert mounted.image.stat().st_size == 6 * MIB
    assert mounted.image.read_bytes()[4 * MIB :] == bytes(2 * MIB)
    assert volume.payload.stat().st_size == 6 * MIB + 512, "its length is not ours to change"
    assert resize(mounted).returncode == 0, "it has all already"
    assert mounted.image.stat().st_size == 6 * MIB


def test_it_can_leave_the_new_part_as_it_is(mounted: Mounted, volume: LuksFiles) -> None:
    """With `--no-fill`, what the payload has in its new part is kept, as ciphertext."""
    with volume.payload.open("ab") as payload:
        payload.write(b"ciphertext" * SECTOR)
    assert resize(mounted, "--no-fill").returncode == 0
    assert mounted.image.stat().st_size == 4 * MIB + 10 * SECTOR
    assert volume.payload.read_bytes()[4 * MIB :] == b"ciphertext" * SECTOR


@pytest.mark.needs("loop")
def test_it_takes_what_a_device_has_got(volume: LuksFiles) -> None:
    """So it is on a device; it cannot be made longer by us, which is said before anything is written."""
    with loop_device(volume.payload) as device:
        mountpoint = volume.payload.parent / "mnt"
        mountpoint.mkdir()
        with Mounted(Path(device), header=volume.header, key_file=volume.key_file, mountpoint=mountpoint) as mount:
            done = resize(mount, "8M")
            assert done.returncode == 4
            assert f"{device} is a device" in done.stderr
            os.truncate(volume.payload, 6 * MIB)
            subprocess.run([program("losetup"), "--set-capacity", device], check=True)
            assert resize(mount).returncode == 0
            assert mount.image.read_bytes()[4 * MIB :] == bytes(2 * MIB)


def test_refusals_are_one_line(mounted: Mounted) -> None:
    """What cannot be is said before anything is changed."""
    before = mounted.payload.read_bytes()
    for words, status, reason in [
        (["2M"], 1, "--shrink"),
        (["4198401"], 4, "not one or more whole sectors of 4096"),
        (["8T"], 4, "payload"),
        (["--shrink", "0"], 4, "not one or more whole sectors"),
        (["--no-fill", "much"], 1, "'much' is not a size"),
        (["5M", "6M"], 1, "unrecognized"),
    ]:
        done = resize(mounted, *words)
        assert done.returncode == status
        assert done.stderr.count("\n") == 1
        assert reason in done.stderr
    assert mounted.payload.read_bytes() == before
    assert mounted.image.stat().st_size == 4 * MIB


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_the_page_at_the_old_end_is_read_again(data_path: str, make_volume: MakeVolume) -> None:
    """A volume may end within a page of memory: what comes after that is the payload's, and not what was cached."""
    files = make_volume(XTS_512)
    os.truncate(files.payload, MIB + 512)
    with (
        Mounted(files.payload, "--data-path", data_path, header=files.header, key_file=files.key_file) as mount,
        mount.image.open("rb", buffering=0) as image,
    ):
        assert len(os.pread(image.fileno(), 4096, MIB)) == 512
        with files.payload.open("ab") as payload:
            payload.write(b"ciphertext" * SECTOR)
        assert resize(mount, "--no-fill").returncode == 0
        seen = os.pread(image.fileno(), 3 * SECTOR, MIB)
        assert seen[512:SECTOR].count(0) < 100, "zeros, which were cached"
    assert seen == decrypted(files)[MIB : MIB + 3 * SECTOR]


def test_on_a_mountpoint_that_is_a_file(volume: LuksFiles, tmp_path: Path) -> None:
    """The image itself is asked then."""
    mountpoint = tmp_path / "file"
    mountpoint.touch()
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file, mountpoint=mountpoint) as mount:
        assert resize(mount, "5M").returncode == 0
        assert mount.image.stat().st_size == 5 * MIB


def test_it_shortens_on_request(mounted: Mounted, volume: LuksFiles) -> None:
    """With `--shrink`, the end is cut off, of the payload too."""
    assert resize(mounted, "--shrink", "2M").returncode == 0
    assert mounted.image.stat().st_size == len(mounted.image.read_bytes()) == 2 * MIB
    assert volume.payload.stat().st_size == 2 * MIB


def test_it_of_what_is_fixed(volume: LuksFiles) -> None:
    """A window that its user gave stays as it is, and so does what is mounted read-only."""
    for options, reason in ((["--size", "1M"], "fixed"), (["--read-only"], "read-only")):
        with Mounted(volume.payload, *options, header=volume.header, key_file=volume.key_file) as mount:
            done = resize(mount, "6M")
            assert done.returncode == 4
            assert reason in done.stderr
        assert volume.payload.stat().st_size == 4 * MIB


def test_it_holds_up_nobody(mounted: Mounted) -> None:
    """While the new part is filled, a writer with its syncs waits for no more than a moment, and for no lock."""
    with subprocess.Popen([LUKSHDRFS, "resize", mounted.mountpoint, "768M"]) as resizing:
        slowest, writes = 0.0, 0
        with mounted.image.open("r+b", buffering=0) as image:
            while resizing.poll() is None:
                before = time.monotonic()
                os.pwrite(image.fileno(), b"meanwhile", writes % 1000 * SECTOR)
                slowest, writes = max(slowest, time.monotonic() - before), writes + 1
                assert os.fstat(image.fileno()).st_size in (4 * MIB, 768 * MIB), "it shows when it is filled"
                if writes == 1:
                    with pytest.raises(OSError, match=r"(Permission|not permitted)"):
                        os.truncate(mounted.image, 8 * MIB)
    assert resizing.returncode == 0
    assert writes > 20
    assert slowest < 2
    assert mounted.image.stat().st_size == 768 * MIB


@pytest.mark.parametrize("end", ["interrupt", "unmount", "lock"])
def test_it_that_does_not_come_to_its_end(end: str, volume: LuksFiles) -> None:
    """Whatever ends it, the payload is as long as it was: nothing half-filled is left over."""
    with (
        Mounted(
            volume.payload, "--cache", "writethrough", header=volume.header, key_file=volume.key_file
        ) as mounted,  # so it takes its time
        subprocess.Popen([LUKSHDRFS, "resize", mounted.mountpoint, "16G"], stderr=subprocess.PIPE) as resizing,
    ):
        wait_until(lambda: mounted.payload.stat().st_size > 5 * MIB, "it is being filled")
        # one at a time; and the one that is refused does not end the other
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            os.setxattr(mounted.mountpoint, "system.lukshdrfs.resize", WISH)
        if end == "interrupt":
            resizing.send_signal(signal.SIGINT)
        else:
            assert lukshdrfs(end, mounted.mountpoint).returncode == 0
        assert resizing.wait(30) != 0
        if end == "interrupt":
            assert mounted.image.stat().st_size == mounted.payload.stat().st_size == 4 * MIB
            assert resize(mounted, "5M").returncode == 0
            assert mounted.image.stat().st_size == 5 * MIB
        else:
            wait_gone(mounted.pid)
            assert mounted.payload.stat().st_size == 4 * MIB


def test_only_the_owner_resizes(volume: LuksFiles, tmp_path: Path) -> None:
    """Others may write to an image that is shared with them, and not ask for its size."""
    if os.geteuid() != 0:
        pytest.skip("root is needed to become another user")
    with Mounted(volume.payload, "-o", "allow_other,umask=0", header=volume.header, key_file=volume.key_file) as mount:
        call = f"import os; os.setxattr(3, 'system.lukshdrfs.resize', {WISH!r})"
        become = "exec setpriv --reuid=61235 --regid=61235 --clear-groups"
        folder = os.open(mount.mountpoint, os.O_RDONLY)
        try:
            done = subprocess.run(
                ["bash", "-c", f'{become} {sys.executable} -c "$1" 3<&{folder}', "sh", call],
                pass_fds=[folder], capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            os.close(folder)
        assert "PermissionError" in done.stderr
        assert mount.image.stat().st_size == 4 * MIB


def test_what_is_no_request_is_refused(mounted: Mounted) -> None:
    """Whatever an owner sets the attribute to, the mount goes on."""
    wishes = [
        *(b"", b"{}", b"[]", b"null", b"[" * 5000, b"\xff"),
        *(b'{"size": "8M", "fill": true, "shrink": false}', b'{"size": true, "fill": 1, "shrink": false}'),
        b'{"size": 1, "fill": true, "other": 0}',
    ]
    for wish in wishes:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            os.setxattr(mounted.mountpoint, "system.lukshdrfs.resize", wish)
    for size in (-1, 0, 1 << 62, 1 << 63, 1 << 200):
        wish = b'{"size": %d, "fill": true, "shrink": true}' % size
        os.setxattr(mounted.mountpoint, "system.lukshdrfs.resize", wish)
        wait_until(lambda: b"failed" in os.getxattr(mounted.mountpoint, "system.lukshdrfs.resize"), "it is refused")
    assert mounted.image.stat().st_size == mounted.payload.stat().st_size == 4 * MIB


def test_what_others_do_to_the_payload_is_said(volume: LuksFiles, tmp_path: Path) -> None:
    """A payload that was made longer or shorter under a mount is no surprise without a word: the log has it once."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    opening = ("--header", volume.header, "--key-file", volume.key_file)
    with foreground("mount", "-f", *opening, volume.payload, mountpoint, mountpoint=mountpoint) as process:
        image = mountpoint / "image"
        wait_until(image.exists, "it is mounted")
        for size in (6 * MIB, 2 * MIB):
            os.truncate(volume.payload, size)
            for _ in range(2):
                time.sleep(1.1)  # the kernel asks for attributes once a second
                assert image.stat().st_size == 4 * MIB
        assert lukshdrfs("resize", mountpoint).returncode == 0
        assert image.stat().st_size == 2 * MIB
        assert lukshdrfs("unmount", mountpoint).returncode == 0
        assert process.stderr is not None
        longer, shorter, taken = process.stderr.read().decode().splitlines()
    assert f"room for {2 * MIB} bytes more" in longer
    assert "'lukshdrfs resize'" in longer
    assert f"cut off: the last {2 * MIB} bytes" in shorter
    assert f"cut off: of the volume's {4 * MIB} bytes, only {2 * MIB} are left" in taken
