"""
Compares builds of lukshdrfs job by job: all of them are mounted, and each job is done on one after the other.

    benchmarks/alternate.py /dev/shm before=/some/venv/bin now=.venv/bin

A machine's speed changes from one minute to the next; what is measured a second apart can be compared. For each job:
the median and the best of all rounds, the daemon's time an operation, and the median of the ratios to the first build,
round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

from contenders import Running, Workbench, lukshdrfs_mount
from jobs import DIRECT, JOBS, Job, Result, fio
from mount import fill

MANY = Job("rand read 4k, 4 jobs", "randread", (*DIRECT, "--bs=4k", "--iodepth=8", "--numjobs=4", "--group_reporting"))
"""More callers than this kind of machine has processors."""
ALL = (*(job for job in JOBS if not job.once), MANY)

Rounds = dict[str, dict[str, list[Result]]]


def measure(builds: dict[str, Path], arguments: argparse.Namespace) -> Rounds:
    """Return what came of each job on each build, round by round."""
    found: Rounds = {job.name: {name: [] for name in builds} for job in ALL}
    size = arguments.size << 20
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, contextlib.ExitStack() as mounted:
        running: dict[str, Running] = {}
        for name, programs in builds.items():
            bench = Workbench(Path(folder) / name, size)
            bench.set_up()
            running[name] = mounted.enter_context(lukshdrfs_mount(bench, bench.luks1, programs=programs))
            fill(running[name], size)
        for number in range(arguments.rounds):
            sys.stderr.write(f"round {number + 1} of {arguments.rounds}\n")
            for job in ALL:
                for name, one in running.items():
                    found[job.name][name].append(fio(job, one, size, arguments.seconds))
    return found


def lines(found: Rounds) -> list[str]:
    """Return a table for people."""
    rows = ["| job | build | median | best | CPU | to the first |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    kinds = {job.name: job.sequential for job in ALL}
    for job, builds in found.items():
        first = next(iter(builds.values()))
        for name, results in builds.items():
            values = [result["value"] for result in results]
            cpu = statistics.median(result["cpu"] for result in results)
            ratio = statistics.median(one / other["value"] for one, other in zip(values, first, strict=True))
            median, best = statistics.median(values), max(values)
            shown = (
                f"{median:.2f} GB/s | {best:.2f} GB/s | {cpu:.2f} s/GiB"
                if kinds[job]
                else f"{median:,.0f}/s | {best:,.0f}/s | {cpu:.1f} µs"
            )
            rows.append(f"| {job} | {name} | {shown} | {ratio - 1:+.1%} |")
    return rows


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the volumes are made, for instance /dev/shm")
    parser.add_argument("builds", nargs="+", metavar="NAME=BIN", help="a build, by the folder of its programs")
    parser.add_argument("--size", type=int, default=512, help="of each volume, in MiB (512)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each job in each round (1)")
    parser.add_argument("--rounds", type=int, default=7, help="of all jobs (7)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    arguments = parser.parse_args()
    builds = {name: Path(programs) for name, _, programs in (text.partition("=") for text in arguments.builds)}
    found = measure(builds, arguments)
    sys.stdout.write("\n".join(lines(found)) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
