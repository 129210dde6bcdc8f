"""
The payload's storage loses its power: what was flushed is there, of the rest any part, in any order.

An ext4 on a loop device on the image is written to, and every write and flush that reaches the payload is recorded.
Then the payload is made up as it may be after a power cut: all writes up to a flush, and of those up to the next one
any sectors of 4096 bytes, as disks have them. ext4 must recover, and files that were fsynced by then must be whole.
(It does not with sectors of 512: its superblock is two of these, and has one checksum.)
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512, XTS_4096, Format, LuksFiles, make_header
from support.devices import ext4, loop_device
from support.mounts import Mounted
from support.nbd import address, over_nbd
from support.nbd_server import NbdServer, Write
from support.tools import program
from support.volumes import MIB, new_files

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("root", "fuse", "loop", "cryptsetup", "mkfs.ext4", "fsck.ext4", "debugfs"),
]

SIZE, SECTOR = 24 * MIB, 4096
CUTS = int(os.environ.get("LUKSHDRFS_CUTS", "8"))
"""How many cuts each test looks at; more take longer."""


def write_files(disk: Path, server: NbdServer, rng: random.Random) -> list[tuple[int, str, str]]:
    """Write files and fsync them; return for each the number of events by then, its name and its content's digest."""
    known = []
    for number in range(40):
        data = rng.randbytes(rng.choice([100, 5000, 60000, 400000]))
        path = disk / f"file{number}"
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, data)
        if rng.random() < 0.7:
            os.fsync(descriptor)
            known.append((len(server.events), path.name, hashlib.sha256(data).hexdigest()))
        os.close(descriptor)
        if number % 9 == 8:
            victim = known.pop(rng.randrange(len(known)))
            (disk / victim[1]).unlink()
    return known


def after_a_cut(events: list[Write | None], flush: int, rng: random.Random) -> bytearray:
    """Return the payload: all before an event, which is a flush, and any sectors of what came up to the next one."""
    content = bytearray(SIZE)
    later: list[Write] = []
    for event in events[:flush]:
        if event is not None:
            content[event[0] : event[0] + len(event[1])] = event[1]
    for event in events[flush + 1 :]:
        if event is None:
            break
        offset, data = event
        bounds = [offset, *range(offset - offset % SECTOR + SECTOR, offset + len(data), SECTOR), offset + len(data)]
        later += [(start, data[start - offset : end - offset]) for start, end in itertools.pairwise(bounds)]
    share = rng.random()
    kept = [piece for piece in later if rng.random() < share]
    for offset, data in kept:  # of two to one place, the later one wins, or is lost
        content[offset : offset + len(data)] = data
    return content


@pytest.mark.parametrize("layout", [XTS_512, XTS_4096], ids=str)
def test_ext4_survives(layout: Format, tmp_path: Path) -> None:
    """After each cut the file system is sound, once its journal has been replayed, and has what was fsynced."""
    files, rng = new_files(tmp_path, SIZE), random.Random(61)
    make_header(files, layout)
    with NbdServer(tmp_path / "socket", SIZE) as server:
        with over_nbd(files, address(tmp_path / "socket")) as mount:
            subprocess.run([program("mkfs.ext4"), "-q", "-E", "nodiscard", mount.image], check=True)
            start = len(server.events)
            with loop_device(mount.image) as device, ext4(device, tmp_path / "disk") as disk:
                known = write_files(disk, server, rng)
        events = [*server.events]
    flushes = [number for number, event in enumerate(events) if event is None and number > start]
    assert len(flushes) > 20
    for flush in sorted(rng.sample(flushes, min(CUTS, len(flushes)))):
        files.payload.write_bytes(after_a_cut(events, flush, rng))
        look_at(files, [(name, digest) for position, name, digest in known if position <= flush], tmp_path)


def look_at(files: LuksFiles, known: list[tuple[str, str]], folder: Path) -> None:
    """See that a volume's file system recovers and has its files."""
    with Mounted(files.payload, header=files.header, key_file=files.key_file) as mount:
        done = subprocess.run([program("fsck.ext4"), "-p", mount.image], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout
        done = subprocess.run(
            [program("fsck.ext4"), "-f", "-n", mount.image], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        commands = "".join(f"dump /{name} {folder / 'copies' / name}\n" for name, _ in known)
        (folder / "copies").mkdir(exist_ok=True)
        subprocess.run(
            [program("debugfs"), "-f", "-", mount.image], input=commands, text=True, check=True, capture_output=True
        )
    for name, digest in known:
        copy = folder / "copies" / name
        assert copy.exists(), name
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == digest, name
        copy.unlink()
