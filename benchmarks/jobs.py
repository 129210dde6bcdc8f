"""What is done with the file: fio's jobs, and a source tree on ext4 on a loop device."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contenders import Running, Workbench, run


@dataclass(frozen=True)
class Job:
    """A job for fio."""

    name: str
    rw: str
    options: tuple[str, ...]
    sequential: bool = False
    once: bool = False
    """Go over the file once: what goes through the page cache must not find it there."""


DIRECT = ("--direct=1", "--ioengine=io_uring")
BUFFERED = ("--direct=0", "--ioengine=psync")

JOBS = (
    Job("seq read direct qd8", "read", (*DIRECT, "--bs=1M", "--iodepth=8"), sequential=True),
    Job("seq write direct qd8", "write", (*DIRECT, "--bs=1M", "--iodepth=8"), sequential=True),
    Job("seq read direct qd1", "read", (*DIRECT, "--bs=1M", "--iodepth=1"), sequential=True),
    Job("seq write direct qd1", "write", (*DIRECT, "--bs=1M", "--iodepth=1"), sequential=True),
    Job("seq read buffered", "read", (*BUFFERED, "--bs=1M"), sequential=True, once=True),
    Job("seq write buffered", "write", (*BUFFERED, "--bs=1M", "--end_fsync=1"), sequential=True, once=True),
    Job("rand read 4k qd1", "randread", (*DIRECT, "--bs=4k", "--iodepth=1")),
    Job("rand read 4k qd32", "randread", (*DIRECT, "--bs=4k", "--iodepth=32")),
    Job("rand write 4k qd1", "randwrite", (*DIRECT, "--bs=4k", "--iodepth=1")),
    Job("rand write 4k qd32", "randwrite", (*DIRECT, "--bs=4k", "--iodepth=32")),
    Job("mix 70/30 4k qd32", "randrw", (*DIRECT, "--bs=4k", "--iodepth=32", "--rwmixread=70")),
    Job("write 4k, fsync each", "randwrite", (*BUFFERED, "--bs=4k", "--fsync=1")),
)

Result = dict[str, float]
"""`value` (GB/s, operations/s or, for ext4, runs/s), `cpu` of the daemon (seconds per GiB, or microseconds per
operation), `pss` (MiB, at the end)."""


def fio(job: Job, running: Running, size: int, seconds: float) -> Result:
    """Run a job and return what came of it."""
    length = [] if job.once else ["--time_based", f"--runtime={seconds}", "--ramp_time=0.3"]
    before = running.cpu_seconds()
    output = run(
        "fio", f"--name={job.name}", f"--filename={running.image}", f"--rw={job.rw}", f"--size={size}",
        "--allow_file_create=0", "--output-format=json", *length, *job.options,
    )  # fmt: skip
    cpu = running.cpu_seconds() - before
    found = json.loads(output[output.index("{") :])["jobs"][0]
    ways = [found["read"], found["write"]]
    moved, operations = sum(way["io_bytes"] for way in ways), sum(way["total_ios"] for way in ways)
    # fio counts nothing of the ramp; the daemon's time has it, so it is taken for its share
    share = 1.0 if job.once else seconds / (seconds + 0.3)
    if job.sequential:
        value = sum(way["bw_bytes"] for way in ways) / 1e9
        cost = cpu * share / (moved / (1 << 30))
    else:
        value = sum(way["iops"] for way in ways)
        cost = cpu * share / max(1, operations) * 1e6
    return {"value": value, "cpu": cost, "pss": running.pss_mib()}


EXT4_JOBS = ("ext4: unpack a tree", "ext4: read a tree")


def make_tree(bench: Workbench) -> Path:
    """Make an archive of a source tree: Python's library, which is on every machine that runs this."""
    archive = bench.folder / "tree.tar"
    source = Path(sysconfig.get_path("stdlib"))
    run("tar", "-cf", archive, "--exclude=site-packages", "--exclude=__pycache__", "-C", source, ".")
    return archive


@contextlib.contextmanager
def _mounted_ext4(image: Path, folder: Path) -> Iterator[None]:
    device = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount", device, folder)
        try:
            yield
        finally:
            run("umount", folder)
    finally:
        run("losetup", "--detach", device)


def ext4(running: Running, bench: Workbench, archive: Path) -> dict[str, Result]:
    """Unpack a tree on ext4 on a loop device, and read it back with nothing cached."""
    folder = bench.folder / "ext4"
    folder.mkdir(exist_ok=True)
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", running.image)
    results = {}
    steps = (
        (EXT4_JOBS[0], ["sh", "-c", f"tar -xf {archive} -C {folder} && sync -f {folder}"]),
        (EXT4_JOBS[1], ["sh", "-c", f"tar -cf - -C {folder} . | wc -c >/dev/null"]),
    )
    for name, command in steps:
        with _mounted_ext4(running.image, folder):
            drop_cache(running.image)
            before, start = running.cpu_seconds(), time.monotonic()
            subprocess.run(command, check=True)
            seconds = time.monotonic() - start
            cpu = running.cpu_seconds() - before
        results[name] = {"value": 1 / seconds, "cpu": cpu * 1e6, "pss": running.pss_mib()}
    return results


def drop_cache(image: Path) -> None:
    """Have the kernel forget the file."""
    descriptor = os.open(image, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
