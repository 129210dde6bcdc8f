"""mount(8), umount(8), fstab and systemd's units, by way of the helper that `install-mount-helper` installs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import LUKSHDRFS, is_mounted, lukshdrfs, mount_table, read_attribute
from support.processes import alive, wait_gone
from support.tools import program

pytestmark = [pytest.mark.needs("fuse", "cryptsetup", "mount"), pytest.mark.root]

UNITS = Path(__file__).parents[2] / "examples/systemd"
HELPERS = ("mount.lukshdrfs", "mount.fuse.lukshdrfs", "umount.lukshdrfs", "umount.fuse.lukshdrfs")


@pytest.fixture
def _helper() -> Iterator[None]:
    """Have the helper where mount(8) looks, and nothing of it afterwards."""
    if any(os.path.lexists(Path("/sbin") / name) for name in HELPERS):
        pytest.skip("lukshdrfs is installed on this machine: its mount helper is not touched")
    assert lukshdrfs("install-mount-helper").returncode == 0
    yield
    assert lukshdrfs("install-mount-helper", "--remove").returncode == 0
    assert not any(os.path.lexists(Path("/sbin") / name) for name in HELPERS)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    """Return an empty directory."""
    folder = tmp_path / "mountpoint"
    folder.mkdir()
    return folder


def mount8(*words: str | Path, fstab: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run mount(8) or umount(8)."""
    environment = {**os.environ, "LIBMOUNT_FSTAB": str(fstab)} if fstab else None
    return subprocess.run(
        [program(str(words[0])), *words[1:]], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def opening(files: LuksFiles) -> str:
    """Return what opens a volume."""
    return f"header={files.header},keyfile={files.key_file}"


@pytest.mark.usefixtures("_helper")
@pytest.mark.parametrize("kind", ["lukshdrfs", "fuse.lukshdrfs"])
def test_mount_and_umount(kind: str, volume: LuksFiles, mountpoint: Path) -> None:
    """Both types mount; findmnt shows source and type; umount takes the mount away, and the daemon ends."""
    done = mount8("mount", "-t", kind, volume.payload, mountpoint, "-o", opening(volume))
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [program("findmnt"), "-n", "-o", "SOURCE,FSTYPE", mountpoint], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [str(volume.payload), "fuse.lukshdrfs"]
    pid = int(read_attribute(mountpoint / "image", "pid"))
    assert mount8("umount", mountpoint).returncode == 0
    assert not is_mounted(mountpoint)
    wait_gone(pid)


@pytest.mark.usefixtures("_helper")
def test_fstab(volume: LuksFiles, mountpoint: Path, tmp_path: Path) -> None:
    """A line of fstab mounts by its mountpoint alone, and with `mount -a`; data stay."""
    fstab = tmp_path / "fstab"
    options = f"{opening(volume)},noauto,nofail,_netdev,user,x-systemd.automount,uid=0,gid=0,umask=077"
    fstab.write_text(f"{volume.payload} {mountpoint} fuse.lukshdrfs {options} 0 0\n")
    assert mount8("mount", mountpoint, fstab=fstab).returncode == 0
    with (mountpoint / "image").open("r+b") as image:
        image.write(b"through fstab")
    assert mount8("umount", mountpoint, fstab=fstab).returncode == 0

    fstab.write_text(f"{volume.payload} {mountpoint} lukshdrfs {opening(volume)},ro,allow_other,nosuid,noexec 0 0\n")
    assert mount8("mount", "-a", fstab=fstab).returncode == 0
    assert mount8("mount", "-a", fstab=fstab).returncode == 0, "what is mounted already is no error"
    assert (mountpoint / "image").read_bytes()[:13] == b"through fstab"
    flags = next(entry for entry in mount_table() if entry.mountpoint == mountpoint).options
    assert {"ro", "nosuid", "noexec"} <= flags
    assert mount8("umount", mountpoint, fstab=fstab).returncode == 0


@pytest.mark.usefixtures("_helper")
def test_unknown_options_are_named(volume: LuksFiles, mountpoint: Path) -> None:
    """An option that nobody knows is an error with its name, and nothing is mounted."""
    done = mount8("mount", "-t", "lukshdrfs", volume.payload, mountpoint, "-o", f"{opening(volume)},unheard-of=1")
    assert done.returncode != 0
    assert "unheard-of" in done.stderr
    assert not is_mounted(mountpoint)


@pytest.mark.usefixtures("_helper")
def test_umount_helper_waits(volume: LuksFiles, mountpoint: Path) -> None:
    """Where umount(8) calls its helper, it returns when everything is on the storage and the daemon has ended."""
    assert mount8("mount", "-t", "lukshdrfs", volume.payload, mountpoint, "-o", opening(volume)).returncode == 0
    pid = int(read_attribute(mountpoint / "image", "pid"))
    # it does so for a path that it has to look up; an absolute one of the superuser it takes away itself
    done = subprocess.run([program("umount"), mountpoint.name], cwd=mountpoint.parent, check=False)
    assert done.returncode == 0
    assert not is_mounted(mountpoint)
    assert not alive(pid)


@pytest.mark.usefixtures("_helper")
def test_busy_umount(volume: LuksFiles, mountpoint: Path) -> None:
    """The helper says who holds a mount; with umount -l the name goes and the last user is served."""
    assert mount8("mount", "-t", "lukshdrfs", volume.payload, mountpoint, "-o", opening(volume)).returncode == 0
    pid = int(read_attribute(mountpoint / "image", "pid"))
    with (mountpoint / "image").open("rb") as image:
        done = subprocess.run(["/sbin/umount.fuse.lukshdrfs", mountpoint], capture_output=True, text=True, check=False)
        assert done.returncode == 5
        assert f"(process {os.getpid()})" in done.stderr
        assert mount8("umount", "-l", mountpoint).returncode == 0
        assert not is_mounted(mountpoint)
        assert image.read(4096)
        assert alive(pid)
    wait_gone(pid)


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """A file under one of the helper's names that is somebody else's is neither replaced nor removed."""
    (tmp_path / "mount.lukshdrfs").write_text("somebody else's")
    for options in ([], ["--remove"]):
        done = lukshdrfs("install-mount-helper", "--directory", tmp_path, *options)
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "mount.lukshdrfs").read_text() == "somebody else's"


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing wrong with the example units."""
    installed = tmp_path / "units"
    installed.mkdir()
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/local/bin/lukshdrfs", str(LUKSHDRFS))
        name = unit.name.replace("@.", "@example.")
        (installed / name).write_text(text)
    assert len(list(installed.iterdir())) == 4
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", *sorted(installed.iterdir())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if str(installed) in line or "example" in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr
