"""NBD servers that crash, forget, hang, fail, lie: nothing that was acknowledged is lost, and nothing hangs."""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import random
import signal
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, decrypted
from support.mounts import is_mounted, lukshdrfs
from support.nbd import Server, address, nbdkit, over_nbd, qemu_nbd
from support.processes import alive, wait_gone
from support.tools import program
from support.volumes import MIB, MakeVolume
from support.waiting import wait_until

from lukshdrfs.errors import DeviceError, PayloadError
from lukshdrfs.payload import NbdPayload

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "nbdkit", "qemu-nbd")

SIZE = 4 * MIB


def forgetful(file: Path, socket: Path) -> Server:
    """Serve a file through a cache that is lost when the server crashes: only what was flushed is in the file."""
    return nbdkit(socket, "--filter=cache", "file", file, "cache=writeback")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a file to be served."""
    file = tmp_path / "disk"
    file.write_bytes(bytes(SIZE))
    return file


@contextlib.contextmanager
def opened(socket: Path, patience_s: float = 10) -> Iterator[NbdPayload]:
    """Open a payload without a mount."""
    with NbdPayload.open(address(socket), read_only=False, patience_s=patience_s) as payload:
        yield payload


def test_what_a_server_forgets_is_written_again(disk: Path, tmp_path: Path) -> None:
    """Acknowledged and not flushed, then the server crashes: all of it is there after the next flush."""
    socket, rng, model = tmp_path / "socket", random.Random(41), bytearray(SIZE)
    with forgetful(disk, socket) as server, opened(socket) as payload:
        for _ in range(300):
            at, size = rng.randrange(SIZE // 512) * 512, rng.randrange(1, 40) * 512
            data = rng.randbytes(min(size, SIZE - at))
            payload.write(memoryview(data), at)
            model[at : at + len(data)] = data
            if rng.random() < 0.03:
                payload.flush()
            if rng.random() < 0.03:
                server.kill()
                assert disk.read_bytes() != model or not payload.unflushed, "this server does not forget"
                server.start()
        payload.flush()
        assert payload.unflushed == 0
        server.kill()
        assert disk.read_bytes() == model


def test_kept_writes_have_a_limit(disk: Path, tmp_path: Path) -> None:
    """What is kept for such a case does not grow without end: it is flushed."""
    socket = tmp_path / "socket"
    piece = memoryview(bytes(MIB))
    with nbdkit(socket, "file", disk), opened(socket) as payload:
        for turn in range(100):
            payload.write(piece, turn % 4 * MIB)
            assert payload.unflushed <= 33 * MIB


@pytest.mark.needs("fio")
@pytest.mark.parametrize("forgets", [False, True])
def test_fio_verifies_over_crashes(make_volume: MakeVolume, tmp_path: Path, forgets: bool) -> None:
    """The server is killed and started again while fio writes and verifies: fio sees no error."""
    files, socket = make_volume(XTS_512, 32 * MIB), tmp_path / "socket"
    server = forgetful(files.payload, socket) if forgets else qemu_nbd(files.payload, socket)
    with server, over_nbd(files, address(socket, "" if forgets else "disk")) as mount:
        fio = subprocess.Popen(
            [program("fio"), "--name=verify", f"--filename={mount.image}", "--size=32M", "--allow_file_create=0",
             "--rw=randwrite", "--bsrange=512-128k", "--direct=1", "--ioengine=libaio", "--iodepth=16",
             "--io_size=128M", "--rate=24M", "--verify=crc32c", "--do_verify=1", "--fsync=64", "--verify_fatal=1"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path,
        )  # fmt: skip
        crashes, rng = 0, random.Random(42)
        while fio.poll() is None and crashes < 8:
            time.sleep(rng.uniform(0.1, 0.7))
            server.kill()
            time.sleep(rng.uniform(0.0, 0.3))
            server.start()
            crashes += 1
        said, _ = fio.communicate(timeout=120)
        assert fio.returncode == 0, said.decode()
        assert crashes >= 4


def test_server_that_stays_away(disk: Path, tmp_path: Path) -> None:
    """Requests wait as long as they are told to, then fail with EIO; later ones at once, until somebody is there."""
    socket = tmp_path / "socket"
    data = bytearray(random.Random(43).randbytes(8192))
    with nbdkit(socket, "file", disk) as server, opened(socket, patience_s=1.5) as payload:
        payload.write(memoryview(data), 0)
        server.kill()
        start = time.monotonic()
        errors: list[PayloadError] = []

        def read() -> None:
            try:
                payload.read_into(memoryview(bytearray(512)), 0)
            except PayloadError as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [error.errno for error in errors] == [errno.EIO] * 8
        assert 1.2 < time.monotonic() - start < 4
        start = time.monotonic()
        with pytest.raises(PayloadError):
            payload.flush()
        assert time.monotonic() - start < 1
        server.start()
        deadline = time.monotonic() + 10
        while True:
            try:
                payload.flush()
                break
            except PayloadError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        found = bytearray(8192)
        payload.read_into(memoryview(found), 0)
        assert found == data


def test_server_that_hangs(disk: Path, tmp_path: Path) -> None:
    """A server that takes requests and answers none is as good as away."""
    socket = tmp_path / "socket"
    slow = nbdkit(socket, "--filter=delay", "file", disk, "rdelay=60", "wdelay=60")
    with slow, opened(socket, patience_s=1) as payload:
        start = time.monotonic()
        with pytest.raises(PayloadError) as caught:
            payload.read_into(memoryview(bytearray(512)), 0)
        assert caught.value.errno == errno.EIO
        assert time.monotonic() - start < 4
        slow.kill()


def test_server_that_does_not_speak(tmp_path: Path) -> None:
    """Somebody who accepts the connection and says nothing, or no NBD, is refused in bounded time."""
    place = tmp_path / "socket"
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        start = time.monotonic()
        with pytest.raises(DeviceError, match="does not answer"):
            NbdPayload.open(address(place), read_only=True, patience_s=1)
        assert time.monotonic() - start < 3


def test_slow_server_serves_many_at_once(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Latency is not paid one request after the other."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    late = ("--filter=delay", "file", files.payload, "rdelay=100ms", "wdelay=100ms")
    with nbdkit(socket, *late), over_nbd(files, address(socket)) as mount:  # noqa: SIM117 - longer otherwise
        with mount.image.open("rb", buffering=0) as file:
            start = time.monotonic()
            threads = [
                threading.Thread(target=os.pread, args=(file.fileno(), 4096, place * 256 * 1024)) for place in range(14)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert time.monotonic() - start < 14 * 0.1


def test_server_that_fails(make_volume: MakeVolume, tmp_path: Path) -> None:
    """A read or write that the server refuses is an error to who asked, and to nobody else; the daemon lives."""
    files, socket, trigger = make_volume(XTS_512), tmp_path / "socket", tmp_path / "fail"
    failing = ("--filter=error", "file", files.payload, "error=ENOSPC", "error-rate=100%", f"error-file={trigger}")
    with nbdkit(socket, *failing), over_nbd(files, address(socket)) as mount:  # noqa: SIM117 - longer otherwise
        with mount.image.open("r+b", buffering=0) as file:
            file.write(b"one" * 1000)
            os.fsync(file.fileno())
            trigger.touch()
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                os.pwrite(file.fileno(), b"two" * 1000, MIB)
            trigger.unlink()
            os.pwrite(file.fileno(), b"two" * 1000, MIB)
            os.fsync(file.fileno())
    plain = decrypted(files)
    assert (plain[:3000], plain[MIB : MIB + 3000]) == (b"one" * 1000, b"two" * 1000)


def test_flush_that_fails_unasked_fails_the_next_one(disk: Path, tmp_path: Path) -> None:
    """A flush that makes room for writes and fails is not forgotten: whoever asks next hears of it, once."""
    socket, trigger = tmp_path / "socket", tmp_path / "fail"
    plugin = (
        "eval", f"get_size=echo {SIZE}", "can_write=exit 0", "can_flush=exit 0", f"pread=head -c $3 {disk}",
        "pwrite=cat > /dev/null", f"flush=if [ -e {trigger} ]; then echo EIO broken >&2; exit 1; fi",
    )  # fmt: skip
    piece = memoryview(bytes(MIB))
    with nbdkit(socket, *plugin), opened(socket) as payload:
        trigger.touch()
        with pytest.raises(PayloadError):
            for turn in range(100):
                payload.write(piece, turn % 4 * MIB)
        trigger.unlink()
        with pytest.raises(PayloadError) as caught:
            payload.flush()
        assert caught.value.errno == errno.EIO
        payload.flush()


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_every_handle_hears_of_a_failed_fsync_once(
    make_volume: MakeVolume, disk: Path, tmp_path: Path, data_path: str
) -> None:
    """As with a file on a disk: whoever had it open is told by the next fsync, who opens it later is not."""
    files, socket, trigger = make_volume(XTS_512), tmp_path / "socket", tmp_path / "fail"
    plugin = (
        "eval", f"get_size=echo {SIZE}", "can_write=exit 0", "can_flush=exit 0", f"pread=head -c $3 {disk}",
        "pwrite=cat > /dev/null", f"flush=if [ -e {trigger} ]; then echo ENOSPC full >&2; exit 1; fi",
    )  # fmt: skip
    with nbdkit(socket, *plugin), over_nbd(files, address(socket), "--data-path", data_path) as mount:
        handles = [os.open(mount.image, os.O_RDWR) for _ in range(3)]
        os.fsync(handles[0])
        trigger.touch()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.fsync(handles[0])
        trigger.unlink()
        later = os.open(mount.image, os.O_RDWR | os.O_SYNC)
        for handle in handles[1:]:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                os.fsync(handle)
        os.pwrite(later, b"well", 0)
        for handle in (*handles, later):
            os.fsync(handle)
            os.close(handle)


def test_server_that_comes_back_smaller(disk: Path, tmp_path: Path) -> None:
    """An export that has lost its end is not the one that it was: nothing is written to it."""
    socket = tmp_path / "socket"
    with nbdkit(socket, "file", disk) as server, opened(socket, patience_s=1) as payload:
        server.kill()
        os.truncate(disk, SIZE // 2)
        server.start()
        with pytest.raises(PayloadError):
            payload.write(memoryview(b"x" * 512), 0)
        assert disk.read_bytes() == bytes(SIZE // 2)
        server.kill()
        os.truncate(disk, SIZE)
        server.start()
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(PayloadError):
                payload.write(memoryview(b"x" * 512), 0)
                break
            assert time.monotonic() < deadline


def test_server_that_lies_about_its_size(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Where there is less than it says, what is not there is an error, and what is there is good."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    size = files.payload.stat().st_size
    plugin = (
        "eval", f"get_size=echo {2 * size}", "can_write=exit 0", "can_flush=exit 0", "flush=exit 0",
        (f"pread=if [ $(($4 + $3)) -gt {size} ]; then echo EIO past the end >&2; exit 1; fi; "
        f"tail -c +$(($4 + 1)) {files.payload} | head -c $3"),
        (f"pwrite=if [ $(($4 + $3)) -gt {size} ]; then echo EIO past the end >&2; exit 1; fi; "
        f"dd of={files.payload} bs=512 seek=$(($4 / 512)) conv=notrunc iflag=fullblock status=none"),
    )  # fmt: skip
    with nbdkit(socket, *plugin), over_nbd(files, address(socket)) as mount:
        assert mount.image.stat().st_size == 2 * size
        with mount.image.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"here" * 1024, 0)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.pwrite(file.fileno(), b"there" * 1024, size + MIB)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.pread(file.fileno(), 4096, size + MIB)
            os.fsync(file.fileno())
    assert decrypted(files)[:4096] == b"here" * 1024


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_lock_while_the_server_is_away(make_volume: MakeVolume, tmp_path: Path, data_path: str) -> None:
    """Who waits gets an error, the key goes, the mount goes; what was acknowledged waits for the server."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    with (
        forgetful(files.payload, socket) as server,
        over_nbd(files, address(socket), "--payload-timeout", "60", "--data-path", data_path) as mount,
    ):
        image = os.open(mount.image, os.O_RDWR | os.O_DIRECT)
        page = mmap.mmap(-1, 8192)
        page.write(b"acknowledged" + bytes(4084))
        assert os.pwritev(image, [memoryview(page)[:4096]], 0) == 4096
        server.kill()
        failed: list[int | None] = []

        def write() -> None:
            try:
                os.pwritev(image, [memoryview(page)[4096:]], MIB)
            except OSError as error:
                failed.append(error.errno)

        writer = threading.Thread(target=write)
        writer.start()
        time.sleep(0.5)
        start = time.monotonic()
        done = lukshdrfs("lock", mount.mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert time.monotonic() - start < 10
        writer.join(1)
        assert failed == [errno.EIO]
        assert not is_mounted(mount.mountpoint)
        os.close(image)
        assert alive(mount.pid)
        server.start()
        wait_gone(mount.pid)
    assert decrypted(files)[:12] == b"acknowledged"


def test_lock_flushes_though_the_mount_ends_meanwhile(make_volume: MakeVolume, tmp_path: Path) -> None:
    """What was acknowledged is flushed, even if the daemon is told to end while it locks."""
    files, socket, flushed = make_volume(XTS_512), tmp_path / "socket", tmp_path / "flushed"
    plugin = (
        "eval", f"get_size=echo {files.payload.stat().st_size}", "can_write=exit 0", "can_flush=exit 0",
        f"flush=echo >> {flushed}", "pwrite=sleep 2; cat > /dev/null", f"pread=head -c $3 {files.payload}",
    )  # fmt: skip
    with nbdkit(socket, *plugin), over_nbd(files, address(socket)) as mount:
        image = os.open(mount.image, os.O_RDWR | os.O_DIRECT)
        page = mmap.mmap(-1, 4096)
        writer = threading.Thread(target=os.pwritev, args=(image, [page], 0))
        writer.start()
        time.sleep(0.5)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(mount.pid, number)
            time.sleep(0.2)
        writer.join()
        with contextlib.suppress(ConnectionAbortedError):  # nobody is there any more
            os.close(image)
        wait_gone(mount.pid)
        assert flushed.exists()


def state_of(server: Server) -> str:
    """Return the state of a server's process, as ps(1) has it."""
    assert server.process is not None
    return Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_nobody_waits(disk: Path, tmp_path: Path) -> None:
    """Those who wait fail at once, be the server away or only silent; what was acknowledged is kept."""
    socket = tmp_path / "socket"
    with forgetful(disk, socket) as server, opened(socket, patience_s=30) as payload:
        payload.write(memoryview(b"kept" * 128), 0)
        for how in (signal.SIGSTOP, signal.SIGKILL):
            assert server.process is not None
            server.process.send_signal(how)
            wait_until(lambda: state_of(server) in "TZ", "the server has heard of it")
            caught: list[int | None] = []

            def read() -> None:
                try:
                    payload.read_into(memoryview(bytearray(512)), MIB)
                except PayloadError as error:
                    caught.append(error.errno)  # noqa: B023 - joined below

            def flush() -> None:
                try:
                    payload.flush()
                except PayloadError as error:
                    caught.append(error.errno)  # noqa: B023 - joined below

            readers = [threading.Thread(target=work) for work in (read, flush) * 4]
            for reader in readers:
                reader.start()
                time.sleep(0.05)  # flushes wait for each other
            start = time.monotonic()
            payload.fail_waiting()
            for reader in readers:
                reader.join()
            assert time.monotonic() - start < 1
            assert caught == [errno.EIO] * 8
            assert payload.unflushed
            payload.wait_again()
        server.kill()
        server.start()
        payload.flush()
    assert disk.read_bytes()[:512] == b"kept" * 128


def _read_in_vain(payload: NbdPayload) -> None:
    with pytest.raises(PayloadError):
        payload.read_into(memoryview(bytearray(512)), 0)


def test_close_does_not_wait_for_a_server(disk: Path, tmp_path: Path) -> None:
    """A server that takes connections and says nothing holds nobody up who wants to end."""
    socket = tmp_path / "socket"
    with forgetful(disk, socket) as server:
        payload = NbdPayload.open(address(socket), read_only=False, patience_s=30)
        payload.write(memoryview(bytes(512)), 0)
        server.kill()
        with sockets.socket(sockets.AF_UNIX) as listener:
            listener.bind(str(socket))
            listener.listen()
            reader = threading.Thread(target=_read_in_vain, args=(payload,))
            reader.start()
            time.sleep(0.7)  # it is being connected to
            payload.fail_waiting()
            reader.join()
            start = time.monotonic()
            payload.close()
            assert time.monotonic() - start < 2


def test_many_writes_are_done_again_fast(disk: Path, tmp_path: Path) -> None:
    """What is kept may be thousands of small writes, and the server far away: they do not wait for each other."""
    socket, rng, model = tmp_path / "socket", random.Random(44), bytearray(SIZE)
    far = nbdkit(
        socket, "--filter=delay", "--filter=cache", "file", disk, "cache=writeback", "delay-write=20ms",
    )  # fmt: skip
    with forgetful(disk, socket) as server, opened(socket, patience_s=30) as payload:
        for number in range(2000):
            at = rng.randrange(SIZE // 512) * 512
            model[at : at + 512] = number.to_bytes(2, "little") * 256
            payload.write(memoryview(model)[at : at + 512], at)
        server.kill()
        assert disk.read_bytes() != model
        start = time.monotonic()
        with far:
            payload.flush()
            assert time.monotonic() - start < 2000 * 0.02 / 2
            far.kill()
    assert disk.read_bytes() == model


def test_much_is_done_again_over_a_slow_link(disk: Path, tmp_path: Path) -> None:
    """It may take longer than anybody waits for one request: it comes to an end nevertheless."""
    socket = tmp_path / "socket"
    slow = nbdkit(socket, "--filter=rate", "file", disk, "rate=8M")  # bits a second
    with forgetful(disk, socket) as server, opened(socket, patience_s=2) as payload:
        for turn in range(8):
            payload.write(memoryview(bytes([turn]) * MIB), turn % 4 * MIB)
        server.kill()
        with slow:
            deadline = time.monotonic() + 20
            while payload.unflushed:
                assert time.monotonic() < deadline
                with contextlib.suppress(PayloadError):
                    payload.flush()
                time.sleep(0.1)
            slow.kill()
    assert disk.read_bytes() == b"".join(bytes([turn]) * MIB for turn in range(4, 8))


def test_errors_can_be_collected(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error keeps its frames, and they the buffers; none of them may be in use when the collector comes by."""
    socket, problems = tmp_path / "socket", list[object]()
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    bad = nbdkit(socket, "--filter=error", "file", disk, "error-pread-rate=100%", "error-pwrite-rate=100%")
    with bad, opened(socket) as payload:

        def fail(work: Callable[[memoryview, int], None]) -> None:
            buffer = memoryview(bytearray(512))
            try:
                work(buffer, 0)
            except PayloadError as error:
                kept: list[object] = [error, buffer]
                kept.append(kept)  # a cycle, as trio makes them

        for work in (payload.read_into, payload.write):
            fail(work)
            gc.collect()
    assert not problems


def test_fsyncs_share_a_flush(disk: Path, tmp_path: Path) -> None:
    """Who asks while the server flushes waits for the next flush, together with all others who do."""
    socket, count = tmp_path / "socket", tmp_path / "count"
    plugin = (
        "eval", f"get_size=echo {SIZE}", "can_write=exit 0", "can_flush=exit 0", "pwrite=cat > /dev/null",
        f"pread=head -c $3 {disk}", f"flush=echo >> {count}; sleep 0.3",
    )  # fmt: skip
    with nbdkit(socket, *plugin), opened(socket) as payload:
        threads = [threading.Thread(target=payload.flush) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= count.read_text().count("\n") <= 3


def test_refused_again_and_kept(disk: Path, tmp_path: Path) -> None:
    """The next flush tells of a server that refuses what it is to write again; it gets all of it the next time."""
    socket, trigger = tmp_path / "socket", tmp_path / "fail"
    failing = nbdkit(
        socket, "--filter=error", "file", disk, "error-pwrite=ENOSPC", "error-pwrite-rate=100%",
        f"error-pwrite-file={trigger}",
    )  # fmt: skip
    with forgetful(disk, socket) as server, opened(socket) as payload:
        payload.write(memoryview(b"kept" * 128), 4096)
        server.kill()
        trigger.touch()
        with failing:
            deadline = time.monotonic() + 5
            found = bytearray(512)
            payload.read_into(memoryview(found), 0)  # it is connected now, and was refused
            assert time.monotonic() < deadline
            assert payload.unflushed
            trigger.unlink()
            failing.kill()
            failing.start()
            payload.read_into(memoryview(found), 4096)
            assert found == b"kept" * 128
            with pytest.raises(PayloadError) as caught:
                payload.flush()
            assert caught.value.errno == errno.ENOSPC
            payload.flush()
            failing.kill()
    assert disk.read_bytes()[4096 : 4096 + 512] == b"kept" * 128


def test_unmount_while_the_server_is_away(make_volume: MakeVolume, tmp_path: Path) -> None:
    """The mount ends all the same, in bounded time, and no process is left."""
    files, socket = make_volume(XTS_512), tmp_path / "socket"
    with (
        nbdkit(socket, "file", files.payload) as server,
        over_nbd(files, address(socket), "--payload-timeout", "2") as mount,
    ):
        with mount.image.open("r+b", buffering=0) as file:
            file.write(b"not flushed")
            server.kill()
        start = time.monotonic()
        mount.unmount()
        assert time.monotonic() - start < 10
