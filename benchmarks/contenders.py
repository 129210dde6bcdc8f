"""The programs that are compared: how each one shows a volume as a file, and what it costs meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
BEFORE = os.environ.get("LUKSHDRFS_BEFORE")
"""The `bin/` of another lukshdrfs, an earlier one for instance, to be measured beside this one."""
FLOOR = Path(__file__).with_name("floor.py")
PATIENCE_S = 30.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Workbench:
    """The files of one run."""

    folder: Path
    size: int
    """Bytes of plaintext."""

    @property
    def key(self) -> Path:
        """A passphrase without a newline, which all programs understand alike."""
        return self.folder / "key"

    @property
    def luks1(self) -> Path:
        """LUKS1, aes-256-xts, 512-byte sectors, header attached: what all programs can open."""
        return self.folder / "luks1.img"

    @property
    def luks2(self) -> Path:
        """LUKS2, aes-256-xts, 4096-byte sectors; its header is in `luks2.hdr`."""
        return self.folder / "luks2.img"

    @property
    def plain(self) -> Path:
        """No cipher."""
        return self.folder / "plain.img"

    @property
    def mountpoint(self) -> Path:
        """Where a contender shows its file."""
        return self.folder / "mnt"

    def set_up(self) -> None:
        """Make the volumes, with the cheapest key derivation there is, and all their blocks allocated."""
        self.folder.mkdir(parents=True)
        self.mountpoint.mkdir()
        self.key.write_bytes(b"benchmark")
        cheap = ["--pbkdf-force-iterations", "1000", "--key-size", "512", "--cipher", "aes-xts-plain64"]
        for path, extra in ((self.luks1, 2 << 20), (self.luks2, 0), (self.plain, 0)):
            with path.open("wb") as stream:
                stream.truncate(self.size + extra)
        run(
            "cryptsetup", "luksFormat", "-q", "--type", "luks1", *cheap, "--key-file", self.key, self.luks1
        )  # fmt: skip
        run(
            "cryptsetup", "luksFormat", "-q", "--type", "luks2", *cheap, "--pbkdf", "pbkdf2", "--sector-size", "4096",
            "--key-file", self.key, "--header", self.folder / "luks2.hdr", self.luks2,
        )  # fmt: skip

    def forget_payloads(self) -> None:
        """Write the payloads to their storage, and have the kernel forget them (a tmpfs cannot)."""
        for path in (self.luks1, self.luks2, self.plain):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class Running:
    """A contender that shows its file."""

    image: Path
    pids: list[int]
    seconds_to_readable: float = 0.0

    def cpu_seconds(self) -> float:
        """Return what its processes have used so far."""
        total = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def pss_mib(self) -> float:
        """Return the memory that its processes hold, their share of what is shared included."""
        total = 0
        for pid in self.pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024


Contender = Callable[[Workbench], contextlib.AbstractContextManager[Running]]


def run(*command: str | Path) -> str:
    """Run a program that must succeed, and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.005)


@contextlib.contextmanager
def lukshdrfs_mount(bench: Workbench, payload: Path | str, *options: str, programs: Path = BIN) -> Iterator[Running]:
    """Run this program on a payload."""
    start = time.monotonic()
    run(programs / "lukshdrfs", "mount", "--key-file", bench.key, *options, payload, bench.mountpoint)
    seconds = time.monotonic() - start
    image = bench.mountpoint / "image"
    try:
        pid = os.getxattr(image, "user.lukshdrfs.pid").decode()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()  # engines
        yield Running(image, [int(pid), *map(int, children)], seconds)
    finally:
        run(programs / "lukshdrfs", "unmount", bench.mountpoint)


def lukshdrfs(*options: str, programs: Path = BIN) -> Contender:
    """Return this program on the volume that all can open."""
    return lambda bench: lukshdrfs_mount(bench, bench.luks1, *options, programs=programs)


def lukshdrfs_4096(bench: Workbench) -> contextlib.AbstractContextManager[Running]:
    """Run this program on LUKS2 with large sectors."""
    return lukshdrfs_mount(bench, bench.luks2, "--header", str(bench.folder / "luks2.hdr"))


@contextlib.contextmanager
def floor(bench: Workbench) -> Iterator[Running]:
    """Run this program without its cipher."""
    process = subprocess.Popen([sys.executable, FLOOR, bench.plain, bench.mountpoint])
    image = bench.mountpoint / "image"
    try:
        wait_for(image.exists, f"{image}")
        yield Running(image, [process.pid])
    finally:
        run(BIN / "lukshdrfs", "unmount", bench.mountpoint)
        process.wait(PATIENCE_S)


def qemu_program(name: str) -> str | None:
    """Return a program of QEMU: of LUKSHDRFS_QEMU10's, else of PATH's."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("LUKSHDRFS_QEMU10", ""), os.environ["PATH"]]))


def qemu(bench: Workbench) -> contextlib.AbstractContextManager[Running]:
    """Run QEMU's luks driver on the volume that all can open."""
    return qemu_luks(bench, f"driver=file,node-name=file,filename={bench.luks1}")


@contextlib.contextmanager
def qemu_luks(bench: Workbench, *nodes: str) -> Iterator[Running]:
    """Run QEMU's luks driver behind its FUSE export, over the node `file`, the last of those given."""
    image = bench.mountpoint / "image"
    image.touch()
    before = image.stat().st_dev
    process = subprocess.Popen(
        [
            qemu_program("qemu-storage-daemon") or "qemu-storage-daemon",
            "--object", f"secret,id=key,file={bench.key}",
            *(option for node in nodes for option in ("--blockdev", node)),
            "--blockdev", "driver=luks,node-name=luks,file=file,key-secret=key",
            "--export", f"fuse,id=export,node-name=luks,mountpoint={image},writable=on",
        ]
    )  # fmt: skip
    try:
        wait_for(lambda: image.stat().st_dev != before, f"{image}")
        yield Running(image, [process.pid])
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        image.unlink()


@contextlib.contextmanager
def nbdkit(bench: Workbench) -> Iterator[Running]:
    """Run nbdkit's luks filter behind nbdfuse."""
    socket, image = bench.folder / "socket", bench.mountpoint / "image"
    server = subprocess.Popen(
        ["nbdkit", "-f", "-U", socket, "--filter=luks", "file", bench.luks1, f"passphrase=+{bench.key}"]
    )
    client: subprocess.Popen[bytes] | None = None
    try:
        wait_for(socket.exists, f"{socket}")
        client = subprocess.Popen(["nbdfuse", image, f"nbd+unix:///?socket={socket}"])
        wait_for(image.exists, f"{image}")
        yield Running(image, [server.pid, client.pid])
    finally:
        if client:
            run("fusermount3", "-u", bench.mountpoint)
            client.wait(PATIENCE_S)
        server.terminate()
        server.wait(PATIENCE_S)
        socket.unlink(missing_ok=True)


def contenders() -> dict[str, Contender]:
    """Return those that are installed."""
    found: dict[str, Contender] = {
        "lukshdrfs": lukshdrfs(),
        "lukshdrfs-python": lukshdrfs("--data-path", "python"),
        "lukshdrfs-4096": lukshdrfs_4096,
        "floor": floor,
    }
    if BEFORE:
        found["before"] = lukshdrfs(programs=Path(BEFORE))
        found["before-python"] = lukshdrfs("--data-path", "python", programs=Path(BEFORE))
    if qemu_program("qemu-storage-daemon"):
        found["qemu"] = qemu
    if shutil.which("nbdkit") and shutil.which("nbdfuse"):
        found["nbdkit"] = nbdkit
    return found


def versions() -> dict[str, str]:
    """Return what was compared."""
    found = {"lukshdrfs": run(BIN / "lukshdrfs", "--version").split()[-1], "fio": run("fio", "--version").strip()}
    if program := qemu_program("qemu-storage-daemon"):
        found["qemu"] = run(program, "--version").split()[2]
    if shutil.which("nbdkit"):
        found["nbdkit"] = run("nbdkit", "--version").split()[1]
        found["nbdfuse"] = run("nbdfuse", "--version").split()[1]
    return found
