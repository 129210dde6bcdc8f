"""Who edits a header keeps everybody else from it, by the lock that cryptsetup takes, and waits for it himself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LUKS1_XTS, XTS_512, Format, LuksFiles, cryptsetup, make_header
from support.devices import loop_device
from support.files import digest
from support.mounts import LUKSHDRFS, Argument, Mounted, lukshdrfs
from support.terminal import Terminal
from support.tools import program
from support.volumes import MakeVolume
from support.waiting import wait_until

from lukshdrfs.errors import InUse
from lukshdrfs.headers import lock as header_lock
from lukshdrfs.headers import open_header, read_header
from lukshdrfs.headers.lock import LOCK_FOLDER

pytestmark = [pytest.mark.needs("cryptsetup")]

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library wait a moment only."""
    monkeypatch.setattr(header_lock, "LOCK_PATIENCE_S", 0.1)


@contextlib.contextmanager
def locked(path: str | Path, how: int) -> Iterator[None]:
    """Hold a lock as cryptsetup does while it reads or writes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def lock_file(device: str) -> Path:
    """Return the file by which cryptsetup locks a device."""
    number = Path(device).stat().st_rdev
    return LOCK_FOLDER / f"L_{os.major(number)}:{os.minor(number)}"


def waits_for_lock(pid: int) -> bool:
    """Tell whether a process hangs in flock(2)."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and str(pid) in line.split() for line in lines)


def has_open(pid: int, path: str | Path) -> bool:
    """Tell whether a process has a file open."""
    with contextlib.suppress(OSError):  # a descriptor may go while we look
        return Path(path) in [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return False


def key_file(files: LuksFiles, name: str) -> Path:
    path = files.key_file.with_name(name)
    path.write_bytes(f"the secret {name}".encode())
    return path


def adding(files: LuksFiles, name: str, header: str | Path | None = None) -> list[Argument]:
    """Return the command that adds a key."""
    return [
        "key", "add", *CHEAP, "--header", header or files.header, "--key-file", files.key_file,
        "--new-key-file", key_file(files, name),
    ]  # fmt: skip


def opens(header: str | Path, key: Path) -> bool:
    return lukshdrfs("key", "test", "--header", header, "--key-file", key).returncode == 0


@contextlib.contextmanager
def started(*command: Argument) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, and end it if it has not ended by itself."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX], ids=["read", "edited"])
def test_locked_header_is_not_edited(how: int, volume: LuksFiles, impatient: None) -> None:
    """A header that another program reads or edits for longer than we wait is in use: exit code 5."""
    before = digest(volume.header)
    with locked(volume.header, how), pytest.raises(InUse) as caught, open_header(str(volume.header)):
        pass
    assert caught.value.exit_code == 5
    assert digest(volume.header) == before
    with open_header(str(volume.header)):
        pass


def test_readers_share_the_lock(volume: LuksFiles, impatient: None) -> None:
    """A header that is read can be read by others, one that is edited cannot."""
    with locked(volume.header, fcntl.LOCK_SH):
        read_header(volume.header)
    with locked(volume.header, fcntl.LOCK_EX), pytest.raises(InUse):
        read_header(volume.header)
    with open_header(str(volume.header)), pytest.raises(InUse):
        read_header(volume.header)


@pytest.mark.root
def test_edit_waits_for_the_lock(volume: LuksFiles) -> None:
    """An edit waits while another program has the header locked, and is made when that lets go."""
    before = digest(volume.header)
    with contextlib.ExitStack() as lock, started(LUKSHDRFS, *adding(volume, "new")) as process:
        lock.enter_context(locked(volume.header, fcntl.LOCK_EX))
        wait_until(lambda: has_open(process.pid, volume.header), "it has the header open")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        assert digest(volume.header) == before
        lock.close()
        assert process.wait(timeout=20) == 0
    assert opens(volume.header, key_file(volume, "new"))


@pytest.mark.needs("strace")
@pytest.mark.root
def test_edit_waits_for_cryptsetup(volume: LuksFiles) -> None:
    """A key that is added while cryptsetup writes the same header comes after that: both changes are there."""
    slowly = [program("strace"), "-qq", "-o", "/dev/null", "-e", "inject=fsync:delay_enter=700000:when=1"]
    with started(*slowly, program("cryptsetup"), "config", "--label", "theirs", volume.header) as theirs:
        wait_until(lambda: _is_locked(volume.header), "cryptsetup has locked the header")
        assert lukshdrfs(*adding(volume, "new")).returncode == 0
        assert theirs.wait(timeout=20) == 0
    header = read_header(volume.header)
    assert header.label == "theirs"
    assert not header.warnings
    assert opens(volume.header, volume.key_file)
    assert opens(volume.header, key_file(volume, "new"))


def _is_locked(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_cryptsetup_waits_for_our_lock(volume: LuksFiles) -> None:
    """While we edit a header, cryptsetup waits; then it finds what we wrote."""
    with contextlib.ExitStack() as lock:
        lock.enter_context(open_header(str(volume.header)))
        with started(program("cryptsetup"), "config", "--label", "theirs", volume.header) as theirs:
            wait_until(lambda: waits_for_lock(theirs.pid), "cryptsetup waits")
            assert theirs.poll() is None
            lock.close()
            assert theirs.wait(timeout=20) == 0
    assert read_header(volume.header).label == "theirs"


@pytest.mark.parametrize(("layout", "count"), [(XTS_512, 3), (LUKS1_XTS, 4)], ids=["luks2", "luks1"])
def test_keys_added_at_the_same_time(layout: Format, count: int, make_volume: MakeVolume) -> None:
    """Of many `key add` at the same time, each adds its key, and none undoes another's."""
    files = make_volume(layout)
    names = [f"new{number}" for number in range(count)]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(LUKSHDRFS, *adding(files, name))) for name in names]
        assert [process.wait(timeout=60) for process in running] == [0] * count
    assert len(read_header(files.header).keyslots) == count + 1
    for key in (files.key_file, *(key_file(files, name) for name in names)):
        assert opens(files.header, key)
        cryptsetup("open", "--test-passphrase", "--key-file", key, "--header", files.header, files.payload)


def test_eight_keys_added_at_the_same_time(volume: LuksFiles, tmp_path: Path) -> None:
    """Eight at the same time are no different, where there is room for as many."""
    header = tmp_path / "roomy.img"
    create: list[Argument] = ["create", *CHEAP, "--luks2-keyslots-size", "4M", "--key-file", volume.key_file]
    assert lukshdrfs(*create, "--header", header, volume.payload).returncode == 0
    names = [f"new{number}" for number in range(8)]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(LUKSHDRFS, *adding(volume, name, header))) for name in names]
        assert [process.wait(timeout=60) for process in running] == [0] * 8
    assert [slot.id for slot in read_header(header).keyslots] == list(range(9))
    assert all(opens(header, key_file(volume, name)) for name in names)


@pytest.mark.needs("fuse")
def test_mounted_volume_is_undisturbed(volume: LuksFiles) -> None:
    """A daemon goes on serving while the keys of its header are added, changed and removed, its own among them."""
    new, third = key_file(volume, "new"), key_file(volume, "third")
    commands: list[list[Argument]] = [
        ["add", *CHEAP, "--key-file", volume.key_file, "--new-key-file", new],
        ["change", *CHEAP, "--key-file", new, "--new-key-file", third],
        ["remove", "--key-file", volume.key_file],
    ]
    data = os.urandom(100_000)
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        for offset, command in enumerate(commands):
            assert lukshdrfs("key", *command, "--header", volume.header).returncode == 0
            with mount.image.open("r+b") as image:
                image.seek(offset * len(data))
                image.write(data)
                os.fsync(image.fileno())
        assert mount.image.read_bytes()[: 3 * len(data)] == data * 3
    assert not opens(volume.header, volume.key_file)
    with Mounted(volume.payload, header=volume.header, key_file=third) as mount:
        assert mount.image.read_bytes()[: 3 * len(data)] == data * 3


@pytest.mark.needs("fuse")
def test_volume_that_is_being_mounted_waits(volume: LuksFiles) -> None:
    """A mount waits for an edit of its header to end."""
    mountpoint = volume.payload.with_name("mnt")
    mountpoint.mkdir()
    with contextlib.ExitStack() as lock:
        lock.enter_context(open_header(str(volume.header)))
        command: list[Argument] = ["mount", "--header", volume.header, "--key-file", volume.key_file]
        with started(LUKSHDRFS, *command, volume.payload, mountpoint) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.8)
            lock.close()
            assert process.wait(timeout=20) == 0
    assert lukshdrfs("unmount", mountpoint).returncode == 0


# --- somebody at a prompt ---------------------------------------------------------------------------------------

TYPED, OTHER = b"typed passphrase", b"another passphrase"


@pytest.fixture
def typed(volume: LuksFiles) -> LuksFiles:
    """Return a volume whose passphrase can be typed."""
    volume.key_file.write_bytes(TYPED)
    volume.header.unlink()
    make_header(volume, XTS_512)
    return volume


def editing(command: str, files: LuksFiles) -> list[Argument]:
    return [LUKSHDRFS, "key", command, *(CHEAP if command != "remove" else ["--force"]), "--header", files.header]


@pytest.mark.needs("setsid")
@pytest.mark.parametrize("command", ["add", "change", "remove"])
def test_prompt_does_not_lock_the_header(command: str, typed: LuksFiles, impatient: None) -> None:
    """While somebody is asked for a passphrase, others read and edit the header; what they add stays there."""
    with Terminal(*editing(command, typed)) as terminal:
        terminal.prompt()
        read_header(typed.header)
        assert lukshdrfs(*adding(typed, "meanwhile")).returncode == 0
        terminal.answer(TYPED)
        if command != "remove":
            terminal.prompt()
            assert lukshdrfs(*adding(typed, "later")).returncode == 0
            terminal.answer(OTHER)
            terminal.answer(OTHER)
        assert terminal.wait() == 0, terminal.shown
    assert opens(typed.header, key_file(typed, "meanwhile"))
    assert opens(typed.header, typed.key_file) is (command == "add")
    if command != "remove":
        assert opens(typed.header, key_file(typed, "later"))
        typed.key_file.write_bytes(OTHER)
        assert opens(typed.header, typed.key_file)


@pytest.mark.needs("setsid")
@pytest.mark.parametrize("command", ["add", "change"])
def test_keyslot_that_is_changed_during_a_prompt(command: str, typed: LuksFiles, tmp_path: Path) -> None:
    """What was unlocked must still be there when the new passphrase has been typed; else nothing is changed."""
    other = tmp_path / "other.img"
    cryptsetup("luksFormat", *XTS_512.options, "--key-file", typed.key_file, "--header", other, typed.payload)
    with Terminal(*editing(command, typed)) as terminal:
        terminal.answer(TYPED)
        terminal.prompt()
        shutil.copyfile(other, typed.header)
        before = digest(typed.header)
        terminal.answer(OTHER)
        terminal.answer(OTHER)
        assert terminal.wait() == 5, terminal.shown
    assert b"meanwhile" in terminal.shown
    assert digest(typed.header) == before


# --- block devices ----------------------------------------------------------------------------------------------


@pytest.fixture
def device(volume: LuksFiles) -> Iterator[str]:
    """Return a loop device with the header on it."""
    with loop_device(volume.header) as name:
        yield name


@pytest.mark.root
@pytest.mark.needs("loop")
def test_locked_device_is_not_edited(device: str, volume: LuksFiles, impatient: None) -> None:
    """Of a device, it is cryptsetup's lock file in /run that says whether its header is in use."""
    LOCK_FOLDER.mkdir(mode=0o700, exist_ok=True)
    with locked(lock_file(device), fcntl.LOCK_SH), pytest.raises(InUse) as caught, open_header(device):
        pass
    assert caught.value.exit_code == 5
    with open_header(device):
        assert lock_file(device).exists()
    assert not lock_file(device).exists()


@pytest.mark.root
@pytest.mark.needs("loop")
def test_cryptsetup_waits_for_our_lock_on_a_device(device: str, volume: LuksFiles) -> None:
    """While we edit the header on a device, cryptsetup waits."""
    with contextlib.ExitStack() as lock:
        lock.enter_context(open_header(device))
        with started(program("cryptsetup"), "config", "--label", "theirs", device) as theirs:
            wait_until(lambda: waits_for_lock(theirs.pid), "cryptsetup waits")
            lock.close()
            assert theirs.wait(timeout=20) == 0
    assert read_header(device).label == "theirs"


@pytest.mark.root
@pytest.mark.needs("loop")
def test_keys_added_to_a_device_at_the_same_time(device: str, volume: LuksFiles) -> None:
    """Several `key add` on a device at the same time each add their key."""
    names = ["new1", "new2", "new3"]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(LUKSHDRFS, *adding(volume, name, device))) for name in names]
        assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert all(opens(device, key) for key in (volume.key_file, *(key_file(volume, name) for name in names)))
    assert not lock_file(device).exists()


@pytest.mark.root
@pytest.mark.needs("loop")
def test_lock_file_that_is_removed_while_it_is_waited_for(device: str, impatient: None) -> None:
    """Who has waited for a lock file that its owner then removed waits again: the next one would make another."""
    descriptor = os.open(device, os.O_RDWR)
    try:
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            first.enter_context(header_lock.header_lock(descriptor, device, exclusive=True))

            def release_once(pause: float) -> None:
                first.close()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(time, "sleep", release_once)  # the second one has begun to wait
                second.enter_context(header_lock.header_lock(descriptor, device, exclusive=True))
            with pytest.raises(InUse), header_lock.header_lock(descriptor, device, exclusive=True):
                pass
    finally:
        os.close(descriptor)
    assert not lock_file(device).exists()
