"""The request handlers, called without a mount: what they answer, and that nothing but an answer comes out."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from support.memory_payload import MemoryPayload

from lukshdrfs.cipher import CipherSpec, SectorCipher
from lukshdrfs.errors import InUse, OutOfMemory, PayloadError, ReadOnlyError, UsageError, WrongKey
from lukshdrfs.fuse.answers import answers_errno
from lukshdrfs.fuse.filesystem import ImageFileSystem
from lukshdrfs.fuse.options import MountOptions
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import Extent, Volume

KEY = bytes(range(64))
SIZE = 40960
ROOT = pyfuse3.ROOT_INODE
IMAGE = pyfuse3.InodeT(ROOT + 1)
CONTEXT = pyfuse3.RequestContext()
PATIENCE_S = 20.0

pytestmark = pytest.mark.trio


def volume_on(payload: MemoryPayload, sector_size: int = 4096) -> Volume:
    """Return a volume with some properties."""
    spec = CipherSpec.parse("aes-xts-plain64")
    cipher = SectorCipher(spec, SecretBytes.copy_of(KEY), sector_size)
    properties = {"uuid": "1234", "cipher": "aes-xts-plain64", "sector_size": str(sector_size), "label": "\udce9"}
    return Volume(payload, [Extent(0, SIZE, 0, sector_size, 0, cipher)], properties)


def shown(payload: MemoryPayload | None = None, **options: Any) -> ImageFileSystem:
    """Return the file system of a volume in memory."""
    given: dict[str, Any] = {"mountpoint": "/a directory", "source": "payload"} | options
    return ImageFileSystem(volume_on(payload or MemoryPayload(SIZE)), MountOptions(**given))


async def answer_of(request: Awaitable[object]) -> int:
    """Return the errno that a request is answered with."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await request
    return caught.value.errno


async def opened(filesystem: ImageFileSystem, flags: int = os.O_RDWR) -> pyfuse3.FileHandleT:
    """Open the image."""
    info = await filesystem.open(IMAGE, pyfuse3.FlagT(flags), CONTEXT)
    assert info.fh is not None
    return info.fh


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PayloadError("full", errno.ENOSPC), errno.ENOSPC),
        (PayloadError("bad", errno.EIO), errno.EIO),
        (PayloadError("quota", errno.EDQUOT), errno.EDQUOT),
        (PayloadError("no number", 0), errno.EIO),
        (ReadOnlyError("ro"), errno.EROFS),
        (InUse("busy"), errno.EBUSY),
        (UsageError("wrong"), errno.EINVAL),
        (WrongKey("wrong"), errno.EACCES),
        (OutOfMemory("memory"), errno.ENOMEM),
        (OSError(errno.ENODEV, "gone"), errno.ENODEV),
        (OSError("without a number"), errno.EIO),
        (TimeoutError(), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ValueError("a bug"), errno.EIO),
        (AssertionError(), errno.EIO),
        (RecursionError(), errno.EIO),
        (KeyError("a bug"), errno.EIO),
        (pyfuse3.FUSEError(errno.ENOENT), errno.ENOENT),
    ],
)
async def test_every_error_is_answered(error: Exception, expected: int) -> None:
    """Whatever goes wrong in a handler, the answer is an errno: the storage's, the error's own, or EIO for a bug."""

    @answers_errno
    async def handler() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    assert await answer_of(handler()) == expected


async def test_an_end_of_the_program_goes_through() -> None:
    """What ends the program is no error of a request, and is not swallowed."""

    @answers_errno
    async def handler() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await handler()


async def test_cancelling_goes_through() -> None:
    """A request that is cancelled ends as such, so that the mount can end."""

    @answers_errno
    async def handler() -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0) as scope:
        await handler()
    assert scope.cancelled_caught


async def test_a_bug_is_logged_with_its_place_and_the_storages_failure_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bug leaves a traceback in the log; a failure of the storage, which is none, leaves one line."""

    @answers_errno
    async def fail(error: Exception) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    await answer_of(fail(PayloadError("the storage says no")))
    assert [record.exc_info for record in caplog.records] == [None]
    assert "the storage says no" in caplog.text
    await answer_of(fail(ValueError("a bug")))
    assert caplog.records[1].exc_info


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENODEV])
async def test_the_storages_errno_reaches_the_reader_and_the_writer(number: int) -> None:
    """A read and a write that the storage refuses are answered with its errno; the next ones work."""
    payload = MemoryPayload(SIZE)
    filesystem = shown(payload)
    handle = await opened(filesystem)

    def fail(_offset: int, _size: int) -> None:
        raise PayloadError("no", number)

    payload.before_read = payload.before_write = fail
    assert await answer_of(filesystem.read(handle, 0, 10)) == number
    assert await answer_of(filesystem.write(handle, 0, bytes(4096))) == number
    assert await answer_of(filesystem.write(handle, 5, b"x")) == number
    payload.before_read = payload.before_write = lambda _offset, _size: None
    assert await filesystem.write(handle, 5, b"x") == 1
    assert await filesystem.read(handle, 5, 1) == b"x"


# --- what is shown ---------------------------------------------------------------------------------------------------


async def test_the_image_is_found_by_its_name_alone() -> None:
    """The directory has the one file, under the name that was asked for."""
    filesystem = shown(name="disk \udcff.img")
    found = await filesystem.lookup(ROOT, pyfuse3.FileNameT(b"disk \xff.img"), CONTEXT)
    assert found.st_ino == IMAGE

    for name in (b"image", b"disk", b"", b".", b"..", b"disk \xff.img\0"):
        assert await answer_of(filesystem.lookup(ROOT, pyfuse3.FileNameT(name), CONTEXT)) == errno.ENOENT
    assert await answer_of(filesystem.lookup(IMAGE, pyfuse3.FileNameT(b"disk \xff.img"), CONTEXT)) == errno.ENOENT


async def test_what_stat_shows_of_the_image() -> None:
    """The image is a file of the plaintext's size, the owner's alone, as old as the payload's last change."""
    payload = MemoryPayload(SIZE)
    found = await shown(payload, uid=11, gid=12).getattr(IMAGE, CONTEXT)

    assert stat.S_ISREG(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid, found.st_nlink, found.st_size) == (11, 12, 1, SIZE)
    assert found.st_blocks * 512 == SIZE
    assert found.st_mtime_ns == payload.modified_ns()


async def test_what_stat_shows_of_the_directory() -> None:
    """The directory is the owner's alone, and it can be entered."""
    found = await shown(uid=11, gid=12).getattr(ROOT, CONTEXT)

    assert stat.S_ISDIR(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert (found.st_uid, found.st_gid) == (11, 12)


@pytest.mark.parametrize(
    ("umask", "read_only", "image", "directory"),
    [
        (0o077, False, 0o600, 0o700),
        (0o077, True, 0o400, 0o500),
        (0o027, False, 0o640, 0o750),
        (0, False, 0o666, 0o777),
        (0, True, 0o444, 0o555),
        (0o7777, False, 0, 0),
    ],
)
async def test_modes_follow_umask_and_read_only(umask: int, image: int, directory: int, *, read_only: bool) -> None:
    """`umask` takes bits away from everybody's, and without writing nobody has the right to."""
    filesystem = shown(MemoryPayload(SIZE, read_only=read_only), umask=umask)

    assert stat.S_IMODE((await filesystem.getattr(IMAGE, CONTEXT)).st_mode) == image
    assert stat.S_IMODE((await filesystem.getattr(ROOT, CONTEXT)).st_mode) == directory


@pytest.mark.parametrize(("sector_size", "expected"), [(512, 4096), (4096, 4096)])
async def test_a_block_is_at_least_a_page(sector_size: int, expected: int) -> None:
    """Programs that ask for the best block size are told a whole number of sectors, and no less than a page."""
    filesystem = ImageFileSystem(volume_on(MemoryPayload(SIZE), sector_size), MountOptions("/x", "payload"))

    assert (await filesystem.getattr(IMAGE, CONTEXT)).st_blksize == expected


async def test_a_mount_on_a_file_is_the_image_itself(tmp_path: Path) -> None:
    """Mounted on a file, the root is the image; nothing is below it."""
    (tmp_path / "file").touch()
    filesystem = shown(mountpoint=str(tmp_path / "file"))

    assert stat.S_ISREG((await filesystem.getattr(ROOT, CONTEXT)).st_mode)
    assert await answer_of(filesystem.lookup(ROOT, pyfuse3.FileNameT(b"image"), CONTEXT)) == errno.ENOENT
    info = await filesystem.open(ROOT, pyfuse3.FlagT(os.O_RDWR), CONTEXT)
    assert info.fh is not None
    assert await filesystem.write(info.fh, 0, b"x") == 1


async def test_statfs_is_the_volumes_size() -> None:
    """The file system is as large as the volume, none of it counts as used, and inodes are not counted."""
    found = await shown().statfs(CONTEXT)

    assert found.f_blocks * found.f_frsize == SIZE
    assert (found.f_bfree, found.f_bavail, found.f_ffree, found.f_files) == (found.f_blocks, found.f_blocks, 0, 0)


# --- opening, reading, writing ---------------------------------------------------------------------------------------


async def test_what_is_written_is_read() -> None:
    """Reads and writes are the volume's: short at its end, ENOSPC behind it."""
    filesystem = shown()
    handle = await opened(filesystem)

    assert await filesystem.write(handle, 4090, b"across a sector's end") == 21
    assert await filesystem.read(handle, 4090, 21) == b"across a sector's end"
    assert len(await filesystem.read(handle, SIZE - 5, 100)) == 5
    assert await filesystem.read(handle, SIZE, 100) == b""
    assert await filesystem.write(handle, SIZE - 5, bytes(100)) == 5
    assert await answer_of(filesystem.write(handle, SIZE, b"x")) == errno.ENOSPC


async def test_a_directory_is_not_opened_as_a_file() -> None:
    """Opening the directory for its bytes is EISDIR."""
    assert await answer_of(shown().open(ROOT, pyfuse3.FlagT(os.O_RDONLY), CONTEXT)) == errno.EISDIR


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC, os.O_TRUNC]
)
async def test_a_read_only_volume_is_not_opened_for_writing(flags: int) -> None:
    """A read-only volume answers EROFS to opening for writing, not only to the write itself."""
    filesystem = shown(MemoryPayload(SIZE, read_only=True))

    assert await answer_of(filesystem.open(IMAGE, pyfuse3.FlagT(flags), CONTEXT)) == errno.EROFS
    handle = await opened(filesystem, os.O_RDONLY)
    assert len(await filesystem.read(handle, 0, 10)) == 10
    assert await answer_of(filesystem.write(handle, 0, b"x")) == errno.EROFS


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
@pytest.mark.parametrize("growable", [True, False])
async def test_opening_with_o_trunc_is_refused(
    access: int, caplog: pytest.LogCaptureFixture, *, growable: bool
) -> None:
    """Whoever truncates relies on zeros afterwards: EPERM, with what to do instead in the log; nothing is changed."""
    filesystem = shown(growable=growable)
    handle = await opened(filesystem)
    await filesystem.write(handle, 0, b"content")

    assert await answer_of(filesystem.open(IMAGE, pyfuse3.FlagT(access | os.O_TRUNC), CONTEXT)) == errno.EPERM
    assert "conv=notrunc" in caplog.text
    assert await filesystem.read(handle, 0, 7) == b"content"


async def test_o_trunc_can_be_ignored() -> None:
    """On request, truncating on opening leaves size and content, as on a block device; other sizes stay refused."""
    filesystem = shown(ignore_truncation=True)
    handle = await opened(filesystem)
    await filesystem.write(handle, 0, b"content")
    again = await opened(filesystem, os.O_RDWR | os.O_TRUNC)

    assert await filesystem.read(again, 0, 7) == b"content"
    assert (await filesystem.getattr(IMAGE, CONTEXT)).st_size == SIZE
    assert await answer_of(filesystem.setattr(IMAGE, *change(size=0), again, CONTEXT)) == errno.EPERM


@pytest.mark.parametrize("direct", [True, False])
async def test_direct_io_is_without_the_kernels_cache(*, direct: bool) -> None:
    """`cache=none` asks the kernel to pass everything on and to keep nothing; otherwise the cache is kept."""
    info = await shown(direct_io=direct).open(IMAGE, pyfuse3.FlagT(os.O_RDONLY), CONTEXT)

    assert info.direct_io == direct
    assert info.keep_cache == (not direct)


async def test_handles_are_apart() -> None:
    """Each opening has a handle of its own."""
    filesystem = shown()
    handles = {await opened(filesystem) for _ in range(20)}

    assert len(handles) == 20


@pytest.mark.parametrize(("flags", "flushes"), [(0, 0), (os.O_DSYNC, 1), (os.O_SYNC, 1)])
async def test_synchronous_writes_are_flushed(flags: int, flushes: int) -> None:
    """A write through a handle opened with O_SYNC or O_DSYNC is on the storage when it is answered; others are not."""
    payload = MemoryPayload(SIZE)
    filesystem = shown(payload)
    handle, other = await opened(filesystem, os.O_RDWR | flags), await opened(filesystem)
    await filesystem.write(handle, 0, b"x")
    assert payload.flushes == flushes
    await filesystem.write(other, 0, b"x")
    assert payload.flushes == flushes


async def test_fsync_flushes_and_close_does_not() -> None:
    """fsync and fdatasync reach the storage; a close is not one of them."""
    payload = MemoryPayload(SIZE)
    filesystem = shown(payload)
    handle = await opened(filesystem)
    await filesystem.flush(handle)
    await filesystem.release(handle)
    assert payload.flushes == 0
    await filesystem.fsync(handle, datasync=False)
    await filesystem.fsync(handle, datasync=True)
    assert payload.flushes == 2


# --- changing attributes ---------------------------------------------------------------------------------------------


def change(**values: Any) -> tuple[pyfuse3.EntryAttributes, pyfuse3.SetattrFields]:
    """Return what the kernel sends for a change of attributes."""
    attributes, fields = pyfuse3.EntryAttributes(), FakeFields(set(values))
    for name, value in values.items():
        setattr(attributes, f"st_{name}", value)
    return attributes, fields  # type: ignore[return-value]


class FakeFields:
    """Which attributes a request changes; pyfuse3's own class can only be made by itself."""

    def __init__(self, changed: set[str]) -> None:
        self.update_size = "size" in changed
        self.update_mode = "mode" in changed
        self.update_uid = "uid" in changed
        self.update_gid = "gid" in changed
        self.update_atime = "atime_ns" in changed
        self.update_mtime = "mtime_ns" in changed
        self.update_ctime = "ctime_ns" in changed


@pytest.mark.parametrize(
    "values",
    [
        {"size": SIZE},
        {"mode": stat.S_IFREG | 0o600},
        {"uid": 11},
        {"gid": 12},
        {"mtime_ns": 5, "atime_ns": 6},
        {"size": SIZE, "mode": stat.S_IFREG | 0o600, "uid": 11, "gid": 12},
        {},
    ],
)
async def test_a_change_that_changes_nothing_is_fine(values: dict[str, Any]) -> None:
    """Setting what is so already, and times, which follow the payload, is answered with what there is."""
    filesystem = shown(uid=11, gid=12)
    found = await filesystem.setattr(IMAGE, *change(**values), None, CONTEXT)

    assert (found.st_size, found.st_uid, found.st_gid) == (SIZE, 11, 12)
    assert found.st_mtime_ns == (await filesystem.getattr(IMAGE, CONTEXT)).st_mtime_ns


@pytest.mark.parametrize(
    "values",
    [{"size": 0}, {"size": SIZE - 1}, {"size": SIZE + 1}, {"size": 1 << 60}, {"mode": stat.S_IFREG | 0o644},
     {"mode": stat.S_IFREG | 0o4600}, {"uid": 0}, {"gid": 0}, {"size": SIZE, "uid": 0}],
)  # fmt: skip
async def test_every_other_change_is_refused(values: dict[str, Any]) -> None:
    """Another size, mode, owner or group is EPERM, with a handle or without."""
    filesystem = shown(uid=11, gid=12)
    handle = await opened(filesystem)
    for given in (None, handle):
        assert await answer_of(filesystem.setattr(IMAGE, *change(**values), given, CONTEXT)) == errno.EPERM


@pytest.mark.parametrize(
    "name",
    ["create", "link", "mkdir", "mknod", "rename", "rmdir", "symlink", "unlink"],
)
async def test_nothing_else_can_be_made_or_removed(name: str) -> None:
    """The directory holds the one file for good: every request that would change that is EPERM."""
    handler: Callable[..., Awaitable[object]] = getattr(shown(), name)

    assert await answer_of(handler(ROOT, b"name", CONTEXT)) == errno.EPERM


# --- extended attributes ---------------------------------------------------------------------------------------------


async def test_extended_attributes_say_what_the_volume_is() -> None:
    """Each property of the volume, and the daemon's process, is an attribute of the image."""
    filesystem = shown()
    names = await filesystem.listxattr(IMAGE, CONTEXT)
    found = {bytes(name): await filesystem.getxattr(IMAGE, name, CONTEXT) for name in names}

    assert found == {
        b"user.lukshdrfs.uuid": b"1234",
        b"user.lukshdrfs.cipher": b"aes-xts-plain64",
        b"user.lukshdrfs.sector_size": b"4096",
        b"user.lukshdrfs.label": b"\xe9",
        b"user.lukshdrfs.pid": str(os.getpid()).encode(),
        b"user.lukshdrfs.data_path": b"python",
    }


async def test_extended_attributes_have_no_secret() -> None:
    """No attribute has anything of the key, as bytes, hexadecimal digits or base64."""
    filesystem = shown()
    for name in await filesystem.listxattr(IMAGE, CONTEXT):
        value = await filesystem.getxattr(IMAGE, name, CONTEXT)
        assert KEY[:8] not in value
        assert KEY[:8].hex().encode() not in value


@pytest.mark.parametrize(
    ("inode", "name"),
    [(IMAGE, b"user.lukshdrfs.key"), (IMAGE, b"user."), (IMAGE, b"user.other"), (ROOT, b"user.lukshdrfs.uuid")],
)
async def test_other_attributes_are_not_there(inode: pyfuse3.InodeT, name: bytes) -> None:
    """In the name space that is kept, anything else, and anything of the directory, is ENODATA."""
    filesystem = shown()

    assert await answer_of(filesystem.getxattr(inode, pyfuse3.XAttrNameT(name), CONTEXT)) == errno.ENODATA
    assert await answer_of(filesystem.removexattr(inode, pyfuse3.XAttrNameT(name), CONTEXT)) == errno.ENODATA
    assert list(await filesystem.listxattr(ROOT, CONTEXT)) == []


@pytest.mark.parametrize("inode", [IMAGE, ROOT])
@pytest.mark.parametrize(
    "name", [b"security.capability", b"trusted.libvirt.security.dac", b"system.posix_acl_access", b"user", b""]
)
async def test_name_spaces_that_are_not_kept_are_not_supported(inode: pyfuse3.InodeT, name: bytes) -> None:
    """To read, set or remove a name there is EOPNOTSUPP, by which programs know that they have to do without."""
    filesystem, asked = shown(), pyfuse3.XAttrNameT(name)

    assert await answer_of(filesystem.getxattr(inode, asked, CONTEXT)) == errno.EOPNOTSUPP
    assert await answer_of(filesystem.setxattr(inode, asked, b"value", CONTEXT)) == errno.EOPNOTSUPP
    assert await answer_of(filesystem.removexattr(inode, asked, CONTEXT)) == errno.EOPNOTSUPP


async def test_attributes_are_not_to_be_changed() -> None:
    """What is shown of the volume is not the caller's to say: EPERM."""
    filesystem, uuid = shown(), pyfuse3.XAttrNameT(b"user.lukshdrfs.uuid")

    assert await answer_of(filesystem.setxattr(IMAGE, uuid, b"5678", CONTEXT)) == errno.EPERM
    assert await answer_of(filesystem.removexattr(IMAGE, uuid, CONTEXT)) == errno.EPERM
    assert await filesystem.getxattr(IMAGE, uuid, CONTEXT) == b"1234"


# --- at the same time ------------------------------------------------------------------------------------------------


async def test_a_slow_read_holds_nobody_up() -> None:
    """While one read waits for the storage, other reads, writes and attributes are answered."""
    payload = MemoryPayload(SIZE)
    filesystem = shown(payload)
    handle = await opened(filesystem)
    may_go_on, waiting = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def wait(offset: int, _size: int) -> None:
        if offset == 0:
            token.run_sync_soon(waiting.set)
            may_go_on.wait(PATIENCE_S)

    payload.before_read = wait
    slow: list[bytes] = []

    async def read_slowly() -> None:
        slow.append(await filesystem.read(handle, 0, 10))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_slowly)
            await waiting.wait()
            assert await filesystem.write(handle, 8192, b"meanwhile") == 9
            assert await filesystem.read(handle, 8192, 9) == b"meanwhile"
            assert (await filesystem.getattr(IMAGE, CONTEXT)).st_size == SIZE
            assert slow == []
            may_go_on.set()
    assert len(slow) == 1


@pytest.mark.parametrize("workers", [1, 3])
async def test_no_more_requests_than_workers_are_in_the_storage(workers: int) -> None:
    """Of many requests at once, as many as there are workers are served at the same time, and all in the end."""
    payload = MemoryPayload(SIZE)
    filesystem = shown(payload, workers=workers)
    handle = await opened(filesystem)
    guard = threading.Lock()
    inside, most = 0, 0
    full = threading.Barrier(workers, timeout=PATIENCE_S)

    def enter(_offset: int, _size: int) -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        full.wait()
        with guard:
            inside -= 1

    payload.before_read = enter
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(workers * 4):
                nursery.start_soon(filesystem.read, handle, 0, 10)
    assert most == workers
