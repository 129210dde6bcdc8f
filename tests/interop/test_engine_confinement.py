"""
QEMU's programs, as we run them, open nothing but the image that they are for.

What an image names (a data file, a backing file, a server) is the word of whoever made it, or changed it a moment ago.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.engines import engine_of, first_bytes, opened, refusal
from support.ordinary_user import NUMBER, ordinary_user
from support.processes import kill, wait_gone
from support.qcow2_images import name_backing_file, name_data_file, new_image
from support.tools import program

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.payload.qemu import confined_process, engine
from lukshdrfs.payload.qemu.backing_chain import Layer
from lukshdrfs.payload.qemu.confined_process import Access, ConfinedProcess
from lukshdrfs.payload.qemu.image_file import ImageFile
from lukshdrfs.payload.qemu.payload import EnginePayload

pytestmark = pytest.mark.needs("qemu-storage-daemon", "qemu-img")

MIB = 1 << 20
SIZE = 8 * MIB
STRANGER = 61234
US = (os.geteuid(), os.getegid())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an empty image."""
    return new_image(tmp_path / "image.qcow2", SIZE)


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """Return a file that no image shall get at."""
    path = tmp_path / "treasure"
    path.write_bytes(b"treasure" * (SIZE // 8))
    return path


def after_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the image change right after we have looked at it: to the look, it names nothing."""
    monkeypatch.setattr(engine, "open_chain", lambda image, image_format, **_: [Layer(image, image_format)])
    monkeypatch.setattr(engine, "check_header", lambda _: None)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_data_file_is_refused_by_name(image: Path, treasure: Path, *, read_only: bool) -> None:
    """An image whose data are in another file is refused to everybody, and the message says which file."""
    name_data_file(image, str(treasure))
    for chain in (False, True):
        assert str(treasure) in refusal(image, read_only=read_only, backing_chain=chain)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("form", ["{}", "file:{}", 'json:{{"driver": "file", "filename": "{}"}}'])
def test_an_image_that_changes_after_the_look_opens_nothing(
    image: Path, treasure: Path, monkeypatch: pytest.MonkeyPatch, form: str, *, read_only: bool
) -> None:
    """QEMU itself cannot open what the image names, for reading or writing, however it is named."""
    before = treasure.read_bytes()
    for target in (str(treasure), "/etc/passwd", "/etc/shadow"):
        name_data_file(new_image(image, SIZE), form.format(target))
        with monkeypatch.context() as patches:
            after_the_look(patches)
            words = refusal(image, read_only=read_only)
            # newer QEMUs take whatever is named for a path
            assert "Permission denied" in words or (form != "{}" and "No such file" in words)
    assert treasure.read_bytes() == before


def test_no_server_is_reached(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is connected to, on this machine or another, because an image names it, or by whatever is given."""
    after_the_look(monkeypatch)
    with socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_INET) as remote:
        local.bind(os.fsencode(tmp_path / "nbd"))
        remote.bind(("127.0.0.1", 0))
        for server in (local, remote):
            server.listen()
            server.setblocking(False)
        port = remote.getsockname()[1]
        for address in (f"nbd+unix:///?socket={tmp_path}/nbd", f"nbd:unix:{tmp_path}/nbd", f"nbd://127.0.0.1:{port}/"):
            name_data_file(new_image(image, SIZE), address)
            refusal(image)
            looking = ConfinedProcess(
                confined_process.find_program("qemu-img", "qemu-utils"), ["info", address], [], owner=US
            )
            assert looking.wait(10) == 1
            assert "ermission denied" in "".join(looking.said())
            looking.close()
        for server in (local, remote):
            with pytest.raises(BlockingIOError):
                server.accept()


def test_a_backing_file_is_not_opened_unasked(image: Path, treasure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option, an image with a backing file is refused; QEMU is told to do without in any case."""
    name_backing_file(image, str(treasure))
    assert str(treasure) in refusal(image)
    assert "--backing-chain" in refusal(image)
    after_the_look(monkeypatch)
    with opened(image) as payload:
        assert first_bytes(payload) == bytes(8)


def whole_lines(trace: str) -> list[str]:
    """Return strace's lines, each with its call's result, where another process came in between as well."""
    lines: list[str] = []
    begun: dict[str, int] = {}
    for line in trace.splitlines():
        number = line.split(" ", 1)[0]
        if resumed := re.search(r"<\.\.\. \w+ resumed>(.*)", line):
            lines[begun.pop(number)] += resumed[1]
            continue
        if line.endswith("<unfinished ...>"):
            begun[number] = len(lines)
        lines.append(line.removesuffix("<unfinished ...>"))
    return lines


@pytest.mark.needs("strace")
def test_the_engine_opens_the_image_and_libraries_alone(image: Path, treasure: Path, tmp_path: Path) -> None:
    """Traced from its start on, over a restart, and after the image has come to name a file: nothing else is opened."""
    trace = tmp_path / "trace"
    work = (
        "import sys, lukshdrfs.payload as p\n"
        "with p.open_payload(p.PayloadName(sys.argv[1], 'qcow2'), p.Access(patience_s=4)) as payload:\n"
        "    for line in sys.stdin:\n"
        "        try: payload.write(memoryview(bytes(4096)), 0); payload.flush(); print('written', flush=True)\n"
        "        except Exception as error: print(error, flush=True)\n"
    )
    traced = "open,openat,openat2,creat,execve,connect,socket"
    with subprocess.Popen(
        [program("strace"), "-f", "-s", "300", "-e", f"trace={traced}", "-o", trace, sys.executable, "-c", work, image],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as worker:  # fmt: skip
        orders, answers = worker.stdin, worker.stdout
        assert orders is not None
        assert answers is not None

        def write() -> str:
            orders.write("\n")
            orders.flush()
            return answers.readline().strip()

        assert write() == "written"
        for _ in range(2):
            pid = engine_of(image)
            kill(pid)
            wait_gone(pid)
            assert write() == "written"
        name_data_file(image, str(treasure))
        pid = engine_of(image)
        kill(pid)
        wait_gone(pid)
        assert write() != "written"
        orders.close()
    lines = whole_lines(trace.read_text())
    assert not [line for line in lines if str(treasure) in line]
    engines = [at for at, line in enumerate(lines) if re.search(r'execve\("[^"]*qemu-storage-daemon"', line)]
    assert len(engines) == 3
    for at in engines:
        number = lines[at].split()[0]
        did = [line for line in lines[at:] if line.startswith(f"{number} ") and "(" in line and "= -1" not in line]
        paths = [match[1] for line in did if (match := re.search(r'open(?:at2?)?\([^"]*"([^"]*)"', line))]
        libraries = re.compile(
            r"(/usr(/local)?)?/lib(32|64)?/.*|/etc/ld\.so\.(cache|preload)|/sys/devices/system/cpu/.*"
        )
        others = {path for path in paths if not libraries.fullmatch(path)}
        assert others <= {"/proc/self/fd/4", "/dev/null", "/dev/urandom"}, others
        assert not [line for line in did if "socket(" in line or "connect(" in line]


def test_qemu_img_can_open_nothing_else(tmp_path: Path, treasure: Path) -> None:
    """The program that makes images works on the new file alone, whatever it is told to do."""
    size_of_header = 65536
    with contextlib.closing(ImageFile.create(str(tmp_path / "new"))) as new:
        process = ConfinedProcess(
            confined_process.find_program("qemu-img", "qemu-utils"),
            ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(treasure), "/proc/self/fd/3"],
            [(new.descriptor, Access.WRITES)], owner=US,
        )  # fmt: skip
        assert process.wait() == 1
        assert "Permission denied" in "".join(process.said())
        process.close()
    with pytest.raises(DeviceError, match="File exists"):
        EnginePayload.create(str(treasure), "qcow2", SIZE)
    with EnginePayload.create(str(tmp_path / "made"), "qcow2", SIZE) as payload:
        assert payload.size == SIZE
    assert (tmp_path / "made").stat().st_size >= size_of_header
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600


def test_an_image_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    """What qemu-img refuses is refused in its words, and there is no file afterwards."""
    with pytest.raises(DeviceError, match=r"payload .*/new: .*too (large|big)"):
        EnginePayload.create(str(tmp_path / "new"), "qcow2", 1 << 62)
    assert not (tmp_path / "new").exists()


WITHOUT_LANDLOCK = """
import ctypes, platform, struct, sys
def at(code, then, k, otherwise=0): return struct.pack("@HBBI", code, then, otherwise, k)
# landlock_create_ruleset has the same number everywhere: as on a kernel that does not know it
program = at(0x20, 0, 0) + at(0x15, 0, 444, 1) + at(0x06, 0, 0x50000 | 38) + at(0x06, 0, 0x7FFF0000)
kept = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None)
assert not libc.prctl(38, 1, 0, 0, 0)
filters = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", 4, ctypes.addressof(kept)))
assert not libc.prctl(22, 2, filters)
from lukshdrfs.errors import DeviceError
from lukshdrfs.payload import Access, PayloadName, open_payload
from lukshdrfs.payload.qemu import confined_process, engine
from lukshdrfs.payload.qemu.backing_chain import Layer
assert not confined_process.restricts_files()
with open_payload(PayloadName(sys.argv[1], "qcow2"), Access()) as payload:
    payload.write(memoryview(bytes(512)), 0)
engine.open_chain = lambda image, image_format, **_: [Layer(image, image_format)]
engine.check_header = lambda _: None
try:
    open_payload(PayloadName(sys.argv[2], "qcow2"), Access())
except DeviceError as error:
    print(error)
"""


@pytest.mark.root
def test_a_kernel_without_landlock(image: Path, treasure: Path, tmp_path: Path) -> None:
    """There, root's engine still has no more rights than the image's owner; that less is kept from it is said."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    treasure.chmod(0o640)
    trap = new_image(tmp_path / "trap", SIZE)
    name_data_file(trap, str(treasure))
    for path in (image, trap):
        os.chown(path, STRANGER, STRANGER)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK, image, trap], capture_output=True, text=True, check=True
    )
    assert "Permission denied" in done.stdout
    assert "no Landlock" in done.stderr


@pytest.mark.root
@pytest.mark.needs("fuse", "nsenter", "setpriv", "unshare")
def test_an_ordinary_users_engine(tmp_path: Path) -> None:
    """The same holds for a user without any privilege: an image that names that user's own files is refused."""
    work = (
        "import os, sys; from lukshdrfs.payload import Access, PayloadName, open_payload\n"
        "from lukshdrfs.payload.qemu import engine\n"
        "from lukshdrfs.payload.qemu.backing_chain import Layer\n"
        "with open_payload(PayloadName('image', 'qcow2'), Access()) as payload:\n"
        "    payload.write(memoryview(bytes(512)), 0)\n"
        "engine.open_chain = lambda image, image_format, **_: [Layer(image, image_format)]\n"
        "engine.check_header = lambda _: None\n"
        "try: open_payload(PayloadName('trap', 'qcow2'), Access())\n"
        "except Exception as error: print(os.geteuid(), error)\n"
    )
    with ordinary_user(tmp_path) as user:
        new_image(user.home / "image", SIZE)
        name_data_file(new_image(user.home / "trap", SIZE), str(user.home / "letters"))
        (user.home / "letters").write_bytes(bytes(SIZE))
        for path in user.home.iterdir():
            os.chown(path, NUMBER, NUMBER)
        done = user.run(sys.executable, "-c", work)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{NUMBER} ")
    assert "Permission denied" in done.stdout


@pytest.mark.root
def test_as_root_it_runs_as_the_images_owner_without_capabilities(image: Path) -> None:
    """Root's engine has the rights of whose image it is, and no more; root's own image, none of root's powers."""
    for owner, group in ((0, 0), (STRANGER, 65534)):  # this machine does not know the stranger, nor any group of his
        os.chown(image, owner, owner)
        with opened(image):
            status = Path(f"/proc/{engine_of(image)}/status").read_text()
            for name, number in (("Uid", owner), ("Gid", group)):
                assert re.search(rf"^{name}:((\t{number}){{4}})$", status, re.MULTILINE), status
            assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert f"{name}:\t0000000000000000" in status
            # for a stranger's image there is a filter more, against io_uring, which passes by all filters
            (filters,) = re.findall(r"^Seccomp_filters:\t(\d+)$", status, re.MULTILINE)
            assert int(filters) == (2 if owner else 1)


@pytest.mark.root
def test_an_image_that_its_owner_may_not_write_to(image: Path) -> None:
    """Root, whom no mode stops, is told why its engine is stopped, and what to do."""
    image.chmod(0o400)
    assert "chmod u+rw" in refusal(image)
    with opened(image, read_only=True) as payload:
        assert payload.size == SIZE
    image.chmod(0o200)
    assert "chmod u+r " in refusal(image, read_only=True)


@pytest.mark.root
@pytest.mark.needs("loop")
def test_an_image_on_a_device(image: Path) -> None:
    """A block device with an image on it is opened exclusively, and its engine opens that device alone."""
    losetup = program("losetup")
    os.truncate(image, 2 * SIZE)  # a device does not grow
    device = subprocess.run(
        [losetup, "--find", "--show", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        with opened(Path(device)) as payload:
            payload.write(memoryview(b"on a device".ljust(4096)), 0)
            payload.flush()
            with pytest.raises(OSError, match="busy"):
                os.close(os.open(device, os.O_RDWR | os.O_EXCL))
            with pytest.raises(InUse):
                opened(Path(device))
        with opened(Path(device), read_only=True) as payload:
            assert first_bytes(payload, 11) == b"on a device"
    finally:
        subprocess.run([losetup, "--detach", device], check=True)
