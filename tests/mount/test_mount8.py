"""mount(8), umount(8), fstab and systemd's units, by way of the helper that `install-mount-helper` installs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import LUKSHDRFS, MOUNT_HELPER, Mounted, is_mounted, lukshdrfs, mount_table, read_attribute
from support.processes import alive, wait_gone
from support.tools import program
from support.volumes import MIB, MakeVolume

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


NAMES = [
    b"\xc3\xa4\xe2\x82\xac",
    b"\xe4\xff",
    b" blanks, and commas ",
    b"tab\tline\nreturn\rend",
    b"back\\slash\\040",
    b"#x",
]
"""What names of files may be: UTF-8, no UTF-8, and what options and the mount table write in another way."""


@pytest.mark.usefixtures("_helper")
@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_payload(name: bytes, volume: LuksFiles, mountpoint: Path, tmp_path: Path) -> None:
    """The source in the mount table is the payload's name, byte by byte: `umount SOURCE` and `mount -a` find it."""
    payload = volume.payload.rename(tmp_path / os.fsdecode(name))
    fstab = tmp_path / "fstab"
    fstab.write_bytes(b"%s %s lukshdrfs %s 0 0\n" % (escaped(payload), bytes(mountpoint), os.fsencode(opening(volume))))
    assert mount8("mount", mountpoint, fstab=fstab).returncode == 0
    pid = int(read_attribute(mountpoint / "image", "pid"))
    try:
        (line,) = (line for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n") if bytes(mountpoint) in line)
        assert line.split(b" - ")[1].split(b" ")[1] == escaped(payload).replace(b"#", b"\\043")
        assert mount8("mount", "-a", fstab=fstab).returncode == 0

        assert json.loads(lukshdrfs("status", mountpoint, "--json").stdout)["payload"] == str(payload)
        assert lukshdrfs("unmount", payload).returncode == 0, "by its payload, too"
        assert mount8("mount", mountpoint, fstab=fstab).returncode == 0
        pid = int(read_attribute(mountpoint / "image", "pid"))
    finally:
        assert mount8("umount", payload).returncode == 0
        assert not is_mounted(mountpoint)
        wait_gone(pid)


def escaped(path: Path) -> bytes:
    """Return a path as fstab and the kernel's table have it."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in bytes(path))


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_status_shows_names_as_they_are(locale: str, volume: LuksFiles, tmp_path: Path) -> None:
    """Letters are shown as letters; bytes that are none, and what a terminal would act upon, as numbers."""
    payload = volume.payload.rename(tmp_path / os.fsdecode(b"\xc3\xa4 \xff\r"))
    with Mounted(payload, header=volume.header, key_file=volume.key_file) as mount:
        done = subprocess.run(
            [LUKSHDRFS, "status", mount.mountpoint], env={**os.environ, "LC_ALL": locale}, stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip
        assert f"payload: {tmp_path}/ä \\xff\\r\n".encode() in done.stdout


@pytest.mark.usefixtures("_helper")
def test_fake_mounts_do_nothing(volume: LuksFiles, mountpoint: Path) -> None:
    """`mount -f` mounts nothing, asks for nothing, and starts nothing."""
    done = mount8("mount", "-f", "-v", "-t", "lukshdrfs", volume.payload, mountpoint, "-o", f"header={volume.header}")
    assert done.returncode == 0, done.stderr
    assert not is_mounted(mountpoint)


@pytest.mark.usefixtures("_helper")
def test_sloppy_mounts_leave_out_what_is_unknown(volume: LuksFiles, mountpoint: Path) -> None:
    """`mount -s` leaves out options that nobody knows."""
    done = mount8("mount", "-s", "-t", "lukshdrfs", volume.payload, mountpoint, "-o", f"{opening(volume)},unheard-of=1")
    assert done.returncode == 0, done.stderr
    assert mount8("umount", mountpoint).returncode == 0


@pytest.mark.needs("unshare")
@pytest.mark.usefixtures("_helper")
@pytest.mark.parametrize("direct", [False, True])
def test_mounting_in_another_namespace(volume: LuksFiles, mountpoint: Path, *, direct: bool) -> None:
    """`mount -N` and `umount -N`: it is mounted there and not here, and unmounted there."""
    with subprocess.Popen(
        [program("unshare"), "--mount", "--propagation=private", "sh", "-c", "echo ready; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as there:  # fmt: skip
        assert there.stdin is not None
        assert there.stdout is not None
        assert there.stdout.readline() == "ready\n"
        table = Path(f"/proc/{there.pid}/mountinfo")
        namespace = f"/proc/{there.pid}/ns/mnt"
        command = ["/sbin/mount.lukshdrfs"] if direct else ["mount", "-t", "lukshdrfs"]
        done = mount8(*command, volume.payload, mountpoint, "-N", namespace, "-o", opening(volume))
        assert done.returncode == 0, done.stderr
        assert not is_mounted(mountpoint)
        assert f" {mountpoint} " in table.read_text(errors="replace")
        command = ["/sbin/umount.lukshdrfs"] if direct else ["umount"]
        done = mount8(*command, mountpoint, "-N", namespace)
        assert done.returncode == 0, done.stderr
        assert f" {mountpoint} " not in table.read_text(errors="replace")
        there.stdin.close()


@pytest.mark.usefixtures("_helper")
def test_options_of_every_file_system(volume: LuksFiles, mountpoint: Path) -> None:
    """Everything that mount(8) knows of every file system is taken."""
    options = "nodiratime,relatime,strictatime,lazytime,noiversion,nomand,silent,nosuid,nodev,X-mount.mkdir,x-any=1"
    done = mount8("mount", "-t", "lukshdrfs", volume.payload, mountpoint, "-o", f"{opening(volume)},{options}")
    assert done.returncode == 0, done.stderr
    flags = next(entry for entry in mount_table() if entry.mountpoint == mountpoint).options
    assert {"nosuid", "nodev"} <= flags
    done = mount8("mount", "-o", "remount,ro", mountpoint)
    assert done.returncode != 0
    assert "unmount" in done.stderr
    assert mount8("umount", mountpoint).returncode == 0


@pytest.mark.usefixtures("_helper")
def test_windows_of_one_payload(make_volume: MakeVolume, tmp_path: Path) -> None:
    """`data-offset=` and `data-size=` mount parts of a payload beside each other; the same part only once."""
    files = make_volume()
    os.truncate(files.payload, 8 * MIB)
    places = [tmp_path / f"at{number}" for number in range(3)]
    for number, (place, start) in enumerate(zip(places, (1, 4, 1), strict=True)):
        place.mkdir()
        options = f"{opening(files)},data-offset={start}M,data-size=2M"
        done = mount8("mount", "-t", "lukshdrfs", files.payload, place, "-o", options)
        assert done.returncode == (5 if number == 2 else 0), done.stderr
    for place in places[:2]:
        assert (place / "image").stat().st_size == 2 * MIB
        assert mount8("umount", place).returncode == 0


@pytest.mark.needs("loop")
@pytest.mark.usefixtures("_helper")
def test_a_window_that_mount8_makes_itself(make_volume: MakeVolume, tmp_path: Path) -> None:
    """mount(8) takes `offset=` for itself and makes a loop device: the part of the file behind it is locked, too."""
    files = make_volume()
    os.truncate(files.payload, 8 * MIB)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    options = f"{opening(files)},offset={MIB},sizelimit={2 * MIB}"
    done = mount8("mount", "-t", "lukshdrfs", files.payload, first, "-o", options)
    assert done.returncode == 0, done.stderr
    try:
        for offset, status in (("0", 5), (f"{2 * MIB}", 5), (f"{4 * MIB}", 0)):
            done = lukshdrfs(
                "mount", "--offset", offset, "--size", f"{2 * MIB}", "--header", files.header, "--key-file",
                files.key_file, files.payload, second,
            )  # fmt: skip
            assert done.returncode == status
        assert mount8("umount", second).returncode == 0
    finally:
        assert mount8("umount", first).returncode == 0


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """A file under one of the helper's names that is somebody else's is neither replaced nor removed."""
    (tmp_path / "umount.lukshdrfs").write_text("somebody else's")
    for options in ([], ["--remove"], ["--force"], ["--remove", "--force"]):
        done = lukshdrfs("install-mount-helper", "--directory", tmp_path, *options)
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "umount.lukshdrfs").read_text() == "somebody else's"
    assert os.listdir(tmp_path) == ["umount.lukshdrfs"], "all or nothing"


def test_another_installations_links_stay(tmp_path: Path) -> None:
    """Links to another installation are named and stay, unless --force is given."""
    other = tmp_path / "other/mount.lukshdrfs"
    folder = tmp_path / "sbin"
    folder.mkdir()
    link = folder / "mount.lukshdrfs"
    link.symlink_to(other)
    for options in ([], ["--remove"]):
        done = lukshdrfs("install-mount-helper", "--directory", folder, *options)
        assert done.returncode == 4
        assert str(other) in done.stderr
        assert link.readlink() == other
        assert os.listdir(folder) == ["mount.lukshdrfs"]
    assert lukshdrfs("install-mount-helper", "--directory", folder, "--force").returncode == 0
    assert link.readlink() == MOUNT_HELPER.resolve()


def test_what_is_installed_is_said(tmp_path: Path) -> None:
    """Each link is named when it is made, and when it is removed; a second time is no error."""
    for options, word in (([], "->"), ([], "already"), (["--remove"], "removed"), (["--remove"], "was not there")):
        done = lukshdrfs("install-mount-helper", "--directory", tmp_path, *options)
        assert done.returncode == 0
        assert [line.split()[0] for line in done.stdout.splitlines()] == [f"{tmp_path}/{name}" for name in HELPERS]
        assert all(word in line for line in done.stdout.splitlines())
    assert lukshdrfs("install-mount-helper", "-q", "--directory", tmp_path).stdout == ""


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
