"""
fio writes in several ways at once and verifies: for each cache mode, sector size and number of workers.

LUKSHDRFS_VERIFY_LOOPS (1) says how often each of them is written and verified.
"""

from __future__ import annotations

import os
import subprocess

import pytest
from support.cryptsetup import XTS_512, XTS_4096, Format
from support.mounts import Mounted
from support.tools import program
from support.volumes import MIB, MakeVolume

pytestmark = pytest.mark.needs("fuse", "cryptsetup", "fio")

LOOPS = os.environ.get("LUKSHDRFS_VERIFY_LOOPS", "1")
JOBS = {
    # fio puts a header of up to 64 bytes into every piece that divides both ends of the range, and 3.39 insists
    "buffered": ["--ioengine=psync", "--bsrange=71-71000", "--bs_unaligned=1"],
    "direct": ["--ioengine=libaio", "--iodepth=16", "--direct=1", "--bsrange=512-128k", "--blockalign=512"],
    "large": ["--ioengine=libaio", "--iodepth=8", "--direct=1", "--bs=1M", "--rw=write"],
    "mapped": ["--ioengine=mmap", "--bs=4k"],
}
ROUNDS = (("buffered", "direct", "large"), ("mapped", "direct", "large"))
"""fio 3.33 cannot verify buffered and mapped jobs beside each other, on any file; `tests/soak/fsx.c` does."""
EACH = 8 * MIB


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("layout", [XTS_512, XTS_4096], ids=str)
@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
def test_all_ways_at_once(make_volume: MakeVolume, cache: str, layout: Format, workers: int) -> None:
    """Buffered in bytes or mapped, direct and deep, in large pieces: each finds what it wrote."""
    volume = make_volume(layout, len(JOBS) * EACH)
    with Mounted(
        volume.payload, "--cache", cache, "--workers", str(workers), header=volume.header, key_file=volume.key_file
    ) as mount:
        for names in ROUNDS:
            jobs = [
                subprocess.Popen(
                    [program("fio"), f"--name={name}", f"--filename={mount.image}", f"--offset={number * EACH}",
                     f"--size={EACH}", "--rw=randwrite", f"--loops={LOOPS}", "--verify=crc32c", "--verify_fatal=1",
                     "--do_verify=1", "--randseed=43", "--fsync=50", "--allow_file_create=0", *JOBS[name]],
                    cwd=volume.payload.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )
                for number, name in enumerate(names)
            ]  # fmt: skip
            said = "".join(job.communicate()[0] for job in jobs)
            assert [job.returncode for job in jobs] == [0] * len(jobs), said
            assert "verify:" not in said
