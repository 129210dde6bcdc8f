"""Writers beside each other: nobody's bytes are lost, in the same sector either."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cryptsetup import LuksFiles
from support.mounts import Mounted

import lukshdrfs as package

pytestmark = pytest.mark.each_data_path

SECTOR = 4096
ROUNDS = 60


def together(*jobs: Callable[[], object]) -> None:
    """Run jobs in threads that start at the same moment."""
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        barrier.wait()
        job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(run, job) for job in jobs]:
            future.result()


@pytest.mark.needs("cryptsetup")
def test_threads_share_sector_of_volume(volume: LuksFiles) -> None:
    """Threads that write pieces of one sector over and over find every piece as they wrote it last."""
    rng = random.Random(30)
    edges = [0, 1, 700, 2048, 3333, SECTOR]
    pieces = list(itertools.pairwise(edges))
    with package.open_volume(volume.payload, header=volume.header, passphrase=volume.secret) as opened:
        for _ in range(ROUNDS):
            sector = rng.randrange(100) * SECTOR
            wanted = rng.randbytes(SECTOR)

            def write(start: int, end: int, sector: int = sector, wanted: bytes = wanted) -> None:
                for turn in range(5):
                    data = wanted[start:end] if turn == 4 else bytes(end - start)
                    opened.pwrite(data, offset=sector + start)

            together(*(lambda piece=piece: write(*piece) for piece in pieces))
            assert bytes(opened.pread(SECTOR, offset=sector)) == wanted


@pytest.mark.needs("cryptsetup")
def test_threads_share_border_sectors(volume: LuksFiles) -> None:
    """Writes of many sectors whose first and last sector others write too leave everyone's bytes."""
    size = 64 * SECTOR
    cuts = [0, 10 * SECTOR + 100, 11 * SECTOR - 1, 30 * SECTOR + 7, 50 * SECTOR + 4000, size]
    with package.open_volume(volume.payload, header=volume.header, passphrase=volume.secret) as opened:
        for turn in range(15):
            wanted = random.Random(turn).randbytes(size)

            def write(start: int, end: int, wanted: bytes = wanted) -> None:
                opened.pwrite(wanted[start:end], offset=start)

            together(*(lambda cut=cut: write(*cut) for cut in itertools.pairwise(cuts)))
            assert bytes(opened.pread(size, offset=0)) == wanted


WRITER = """
import mmap, os, sys
image, sector, start, end, fill, rounds, direct = sys.argv[1], *map(int, sys.argv[2:])
descriptor = os.open(image, os.O_RDWR | (os.O_DIRECT if direct else 0))
data = mmap.mmap(-1, 4096)
sys.stdin.readline()
for turn in range(rounds):
    data[: end - start] = bytes([fill if turn == rounds - 1 else turn % 256]) * (end - start)
    os.pwritev(descriptor, [memoryview(data)[: end - start]], sector * 4096 + start)
"""


@pytest.mark.needs("fuse", "cryptsetup")
@pytest.mark.parametrize(
    ("cache", "cut"),
    [("writeback", 1111), ("writethrough", 1111), ("none", 1111), ("none", 512), ("writeback-direct", 1536)],
)
def test_processes_share_sector(cache: str, cut: int, volume: LuksFiles) -> None:
    """Two processes write the two parts of a sector, again and again; both parts are what was written last."""
    direct = cache.endswith("-direct")
    with Mounted(
        volume.payload,
        "--cache",
        cache.removesuffix("-direct"),
        header=volume.header,
        key_file=volume.key_file,
    ) as mount:
        for sector in range(3):
            writers = [
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, mount.image, str(sector), *map(str, part), str(ROUNDS),
                     str(int(direct))],
                    stdin=subprocess.PIPE,
                )
                for part in [(0, cut, 0xAA), (cut, SECTOR, 0xBB)]
            ]  # fmt: skip
            for writer in writers:
                assert writer.stdin is not None
                writer.stdin.write(b"go\n")
                writer.stdin.flush()
            for writer in writers:
                writer.communicate()
                assert writer.returncode == 0
        wanted = (b"\xaa" * cut + b"\xbb" * (SECTOR - cut)) * 3
        assert mount.image.read_bytes()[: 3 * SECTOR] == wanted
    with package.open_volume(volume.payload, header=volume.header, passphrase=volume.secret) as opened:
        assert bytes(opened.pread(3 * SECTOR, offset=0)) == wanted


@pytest.mark.needs("fuse", "cryptsetup")
def test_reader_beside_writers(volume: LuksFiles) -> None:
    """Direct reads of a sector during writes of it see whole writes: the old bytes or the new, of each part."""
    with Mounted(volume.payload, "--cache", "none", header=volume.header, key_file=volume.key_file) as mount:
        descriptor = os.open(mount.image, os.O_RDWR)
        os.pwrite(descriptor, bytes(SECTOR), 0)
        torn: list[bytes] = []

        def write(start: int, end: int) -> None:
            for turn in range(ROUNDS):
                os.pwrite(descriptor, bytes([turn]) * (end - start), start)

        def read() -> None:
            for _ in range(ROUNDS):
                data = os.pread(descriptor, SECTOR, 0)
                if len({*data[:1000]}) != 1 or len({*data[1000:]}) != 1:
                    torn.append(data)

        together(lambda: write(0, 1000), lambda: write(1000, SECTOR), read, read)
        os.close(descriptor)
    assert not torn
