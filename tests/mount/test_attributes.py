"""What the mounted directory and its one file are, and what may not be done to them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cryptsetup import LUKS1_XTS, XTS_512, XTS_4096, Format, LuksFiles, cryptsetup
from support.mounts import Mounted, mount_table, read_attribute
from support.volumes import MIB, MakeVolume

pytestmark = [pytest.mark.needs("fuse", "cryptsetup"), pytest.mark.each_data_path]


def test_directory_holds_one_private_file(mounted: Mounted) -> None:
    """There is exactly the image in the directory, and both are their owner's alone."""
    image = mounted.image.stat()

    assert os.listdir(mounted.mountpoint) == ["image"]
    assert stat.S_ISREG(image.st_mode)
    assert stat.S_IMODE(image.st_mode) == 0o600
    assert stat.S_IMODE(mounted.mountpoint.stat().st_mode) & 0o077 == 0
    assert (image.st_uid, image.st_gid) == (os.geteuid(), os.getegid())
    assert image.st_nlink == 1


@pytest.mark.parametrize("layout", [XTS_512, XTS_4096, LUKS1_XTS], ids=lambda layout: str(layout.id))
def test_size_and_block_size(layout: Format, make_volume: MakeVolume) -> None:
    """The image is as large as the plaintext, and asks for requests of whole pages and sectors."""
    files = make_volume(layout, size=3 * MIB)

    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        image = mount.image.stat()
    assert image.st_size == 3 * MIB
    assert image.st_blksize >= max(4096, layout.sector_size)
    assert image.st_blocks <= 3 * MIB // 512 + 8  # a sparse payload has fewer


def test_tail_shorter_than_sector_is_not_shown(make_volume: MakeVolume) -> None:
    """A payload that does not end at a sector's end has its last bytes left out."""
    files = make_volume()
    os.truncate(files.payload, 2 * MIB + 4095)

    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        assert mount.image.stat().st_size == 2 * MIB


def test_modification_time_follows_writes(mounted: Mounted) -> None:
    """A write is seen in the image's time of modification."""
    os.utime(mounted.payload, (1_000_000_000, 1_000_000_000))
    before = mounted.image.stat().st_mtime

    with mounted.image.open("r+b", buffering=0) as image:
        image.write(b"x")
        os.fsync(image.fileno())
    assert mounted.image.stat().st_mtime >= before
    assert mounted.payload.stat().st_mtime > 1_000_000_000


def test_statfs_alarms_nobody(mounted: Mounted) -> None:
    """The file system is as large as the image, and is not one that is full: neither of blocks nor of inodes."""
    usage = os.statvfs(mounted.mountpoint)

    assert usage.f_frsize > 0
    assert usage.f_blocks * usage.f_frsize == 4 * MIB
    assert usage.f_bavail == usage.f_bfree == usage.f_blocks
    assert usage.f_files == usage.f_ffree == 0
    assert usage.f_namemax >= len("image")


def test_extended_attributes_tell_format(mounted: Mounted, volume: LuksFiles) -> None:
    """The image's attributes say what the header says, as cryptsetup reads it; there are no secrets among them."""
    uuid = cryptsetup("luksUUID", volume.header).decode().strip()

    assert read_attribute(mounted.image, "uuid") == uuid
    assert read_attribute(mounted.image, "cipher") == "aes-xts-plain64"
    assert read_attribute(mounted.image, "sector_size") == "4096"
    assert read_attribute(mounted.image, "key_size") == "512"
    assert read_attribute(mounted.image, "type") == "luks2"
    names = os.listxattr(mounted.image)
    assert {f"user.lukshdrfs.{name}" for name in ("uuid", "cipher", "sector_size", "key_size", "type", "pid")} <= {
        *names
    }
    for name in names:
        assert volume.secret not in os.getxattr(mounted.image, name)
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(mounted.image, "user.lukshdrfs.key")


@pytest.mark.root
@pytest.mark.parametrize("name", ["trusted.libvirt.security.dac", "security.selinux", "system.posix_acl_access"])
def test_name_spaces_that_are_not_kept(name: str, mounted: Mounted) -> None:
    """Through the kernel, too, they are not supported, of the image and of the directory: libvirt goes on then."""
    calls: dict[str, Callable[[Path], object]] = {"get": lambda path: os.getxattr(path, name)}
    if not name.startswith("system."):  # to set one of these, its value must be an access control list
        calls["set"] = lambda path: os.setxattr(path, name, b"1")
        calls["remove"] = lambda path: os.removexattr(path, name)
    for path in (mounted.image, mounted.mountpoint):
        for call in calls.values():
            with pytest.raises(OSError, match=r".") as caught:
                call(path)
            assert caught.value.errno == errno.EOPNOTSUPP


def test_process_is_the_one_named(mounted: Mounted) -> None:
    """The attribute `pid` names the daemon, whose arguments and environment hold no secret."""
    process = Path(f"/proc/{mounted.pid}")

    assert b"lukshdrfs" in (process / "cmdline").read_bytes()
    assert b"battery" not in (process / "cmdline").read_bytes()
    if os.geteuid() == 0:
        assert b"battery" not in (process / "environ").read_bytes()


def test_daemon_leaves_no_core(mounted: Mounted) -> None:
    """A daemon that crashed would not write its keys into a core file."""
    limits = Path(f"/proc/{mounted.pid}/limits").read_text()
    # a process that cannot be dumped belongs to root in /proc, whoever runs it: as root that tells nothing
    undumpable = os.geteuid() != 0 and Path(f"/proc/{mounted.pid}").stat().st_uid == 0
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))

    assert undumpable or core.split()[4] == "0"


def test_mount_table_names_program(mounted: Mounted) -> None:
    """The kernel's mount table has the type that fstab would have, and no set-uid programs or devices."""
    entry = next(entry for entry in mount_table() if entry.mountpoint == mounted.mountpoint)

    assert entry.kind == "fuse.lukshdrfs"
    assert {"nosuid", "nodev", "rw"} <= entry.options


REFUSED: dict[str, Callable[[Path], object]] = {
    "chmod": lambda image: image.chmod(0o644),
    "chown": lambda image: os.chown(image, 12345, 12345),
    "rename": lambda image: image.rename(image.with_name("other")),
    "unlink": lambda image: image.unlink(),
    "create": lambda image: image.with_name("other").write_bytes(b""),
    "mkdir": lambda image: image.with_name("directory").mkdir(),
    "symlink": lambda image: image.with_name("symlink").symlink_to("image"),
    "link": lambda image: image.with_name("link").hardlink_to(image),
    "mkfifo": lambda image: os.mkfifo(image.with_name("fifo")),
    "rmdir": lambda image: (image.parent / "image").rmdir(),
    "grow": lambda image: os.truncate(image, image.stat().st_size + 4096),
    "shrink": lambda image: os.truncate(image, 0),
}
ERRNO_OF_ITS_OWN = {"rmdir": errno.ENOTDIR}
"""The kernel finds out by itself that the image is no directory."""


@pytest.mark.parametrize("action", REFUSED)
def test_refused_on_writable_mount(action: str, mounted: Mounted) -> None:
    """The directory holds the image and nothing else, for good."""
    with pytest.raises(OSError, match=r".") as caught:
        REFUSED[action](mounted.image)
    assert caught.value.errno == ERRNO_OF_ITS_OWN.get(action, errno.EPERM)
    assert os.listdir(mounted.mountpoint) == ["image"]
    assert mounted.image.stat().st_size == 4 * MIB
    assert stat.S_IMODE(mounted.image.stat().st_mode) == 0o600


@pytest.mark.parametrize("action", [*REFUSED, "write"])
def test_refused_on_read_only_mount(action: str, volume: LuksFiles) -> None:
    """A read-only mount is a read-only file system, to every call."""
    actions: dict[str, Callable[[Path], object]] = {
        **REFUSED,
        "write": lambda image: os.open(image, os.O_RDWR),
    }
    before = volume.payload.read_bytes()

    with Mounted(volume.payload, "--read-only", header=volume.header, key_file=volume.key_file) as mount:
        with pytest.raises(OSError, match=r".") as caught:
            actions[action](mount.image)
        assert caught.value.errno == errno.EROFS
        assert not stat.S_IMODE(mount.image.stat().st_mode) & 0o222
    assert volume.payload.read_bytes() == before


def test_other_users_are_shut_out(mounted: Mounted) -> None:
    """Another user, who may walk to the mountpoint, can neither list it nor open the image."""
    if os.geteuid() != 0:
        pytest.skip("root is needed to become another user")
    folder = mounted.mountpoint
    # pytest's folders are private: what shuts the other user out must be the mount itself
    descriptor = os.open(folder, os.O_PATH)
    try:
        child = os.fork()
        if child == 0:  # no pytest in here
            code = 0
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.open("image", os.O_RDONLY, dir_fd=descriptor)
            except PermissionError:
                code = 7
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    finally:
        os.close(descriptor)
