"""Short runs of what docs/reliability.md has long ones of: fsx, and processes killed at random moments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, XTS_4096, Format, decrypted
from support.mounts import Mounted
from support.nbd import address, over_nbd, qemu_nbd
from support.tools import program, require
from support.volumes import MIB, MakeVolume

SOAK = Path(__file__).parents[1] / "soak"

pytestmark = pytest.mark.needs("fuse", "cryptsetup")


@pytest.fixture(scope="module")
def fsx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program."""
    target = tmp_path_factory.mktemp("fsx") / "fsx"
    subprocess.run([program("gcc"), "-O1", "-Wall", "-Wextra", "-Werror", "-o", target, SOAK / "fsx.c"], check=True)
    return target


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("layout", [XTS_512, XTS_4096], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--cache", "none"),
        ("--cache", "writethrough", "--workers", "1"),
        ("--data-path", "python", "--workers", "3"),
    ],
    ids=" ".join,
)
def test_fsx(make_volume: MakeVolume, layout: Format, options: tuple[str, ...], fsx: Path) -> None:
    """Buffered, direct and mapped access at once: what is read is what was written, also in the end by cryptsetup."""
    files = make_volume(layout, 3 * MIB)
    with Mounted(files.payload, *options, header=files.header, key_file=files.key_file) as mount:
        run_fsx(fsx, mount, 3 * MIB, 1500)
        seen = mount.image.read_bytes()
    assert decrypted(files) == seen


@pytest.mark.needs("gcc", "qemu-nbd")
def test_fsx_over_nbd(make_volume: MakeVolume, fsx: Path, tmp_path: Path) -> None:
    """And over NBD, with small requests that no thread waits for."""
    files, socket = make_volume(XTS_512, 3 * MIB), tmp_path / "socket"
    with qemu_nbd(files.payload, socket), over_nbd(files, address(socket, "disk")) as mount:
        run_fsx(fsx, mount, 3 * MIB, 3000)
        seen = mount.image.read_bytes()
    assert decrypted(files) == seen


def run_fsx(fsx: Path, mount: Mounted, size: int, operations: int) -> None:
    """Run it; it must find nothing wrong."""
    done = subprocess.run(
        [fsx, mount.image, "81", str(operations), str(size)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{operations} operations")


@pytest.mark.needs("fusermount3")
@pytest.mark.parametrize(
    ("payload", "cache", "needs"),
    [
        ("file", "writeback", ()),
        ("file", "writethrough", ()),
        ("qcow2", "writeback", ("qemu-img", "qemu-storage-daemon")),
        ("nbd", "none", ("nbdkit",)),
    ],
)
def test_killed_at_any_moment(payload: str, cache: str, needs: tuple[str, ...], tmp_path: Path) -> None:
    """What was acknowledged is there after a kill; what was fsynced also if the store died with the daemon."""
    require(needs)
    folder = tmp_path / "rounds"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, SOAK / "kill_rounds.py", folder, "--rounds", "6", "--payload", payload, "--cache", cache],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["writes"] > 100
