"""
Measures mounted volumes, side by side.

lukshdrfs, QEMU's luks driver behind its FUSE export, nbdkit's luks filter behind nbdfuse, and
lukshdrfs without its cipher, with the same jobs on the same machine in interleaved rounds.

Prints medians, ratios and the CPU time of each daemon; writes JSON and a chart where asked to. As root, it measures
ext4 on a loop device on top, too. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chart import draw
from contenders import Contender, Running, Workbench, contenders, versions
from jobs import EXT4_JOBS, JOBS, Result, drop_cache, ext4, fio, make_tree

Samples = dict[str, dict[str, list[Result]]]


def measure(bench: Workbench, chosen: dict[str, Contender], arguments: argparse.Namespace) -> Samples:
    """Return each result of each program, job and round."""
    samples: Samples = {name: {} for name in chosen}
    archive = make_tree(bench) if os.geteuid() == 0 and not arguments.no_ext4 else None
    for turn in range(arguments.rounds + 1):
        for name, contender in chosen.items():
            bench.forget_payloads()  # how they lie in the page cache is each program's own doing
            with contender(bench) as running:
                fill(running, bench.size)
                if turn == 0:
                    continue  # the first time blocks are allocated
                results = {job.name: fio(job, running, bench.size, arguments.seconds) for job in JOBS}
                if archive:
                    results |= ext4(running, bench, archive)
                if running.seconds_to_readable:
                    results["mount"] = {"value": running.seconds_to_readable}
            for job, result in results.items():
                samples[name].setdefault(job, []).append(result)
            print(f"round {turn} of {arguments.rounds}: {name}", file=sys.stderr)
    return samples


def fill(running: Running, size: int) -> None:
    """Write the whole file once."""
    with running.image.open("r+b", buffering=0) as image:
        block = os.urandom(1 << 20)
        for _ in range(size >> 20):
            image.write(block)
        os.fsync(image.fileno())
    drop_cache(running.image)


def medians(samples: Samples) -> dict[str, dict[str, Result]]:
    """Return the median of each figure."""
    return {
        name: {
            job: {key: round(statistics.median(result[key] for result in results), 4) for key in results[0]}
            for job, results in rows.items()
        }
        for name, rows in samples.items()
    }


def table(found: dict[str, dict[str, Result]]) -> str:
    """Return a table for people: figures, and in brackets the daemon's CPU time."""
    names = list(found)
    lines = [
        "| job | " + " | ".join(names) + " | times QEMU | of the floor |",
        "| --- |" + " ---: |" * (len(names) + 2),
    ]
    kinds = {job.name: job.sequential for job in JOBS}
    for job in [*kinds, *EXT4_JOBS]:
        if not any(job in rows for rows in found.values()):
            continue
        cells = []
        for name in names:
            if job not in found[name]:
                cells.append("-")
                continue
            value, cpu = found[name][job]["value"], found[name][job]["cpu"]
            if job in EXT4_JOBS:
                cells.append(f"{1 / value:.2f} s ({cpu / 1e6:.2f} s)")
            elif kinds[job]:
                cells.append(f"{value:.2f} GB/s ({cpu:.2f} s/GiB)")
            else:
                cells.append(f"{value:,.0f}/s ({cpu:.0f} µs)")
        own = found["lukshdrfs"][job]["value"]
        times = f"{own / found['qemu'][job]['value']:.1f}" if job in found.get("qemu", {}) else "-"
        share = f"{own / found['floor'][job]['value'] * 100:.0f}%" if job in found.get("floor", {}) else "-"
        lines.append(f"| {job} | {' | '.join(cells)} | {times} | {share} |")
    return "\n".join(lines)


def soak(bench: Workbench, contender: Contender, seconds: float) -> list[tuple[float, float]]:
    """Load the default mount for long; return its memory over time: seconds and MiB."""
    seen = []
    with contender(bench) as running:
        load = subprocess.Popen(
            ["fio", "--name=soak", f"--filename={running.image}", f"--size={bench.size}", "--allow_file_create=0",
             "--time_based", f"--runtime={seconds}", "--rw=randrw", "--bsrange=512-1M", "--direct=1",
             "--ioengine=io_uring", "--iodepth=32"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        start = time.monotonic()
        while load.poll() is None:
            seen.append((round(time.monotonic() - start, 1), round(running.pss_mib(), 1)))
            with contextlib.suppress(subprocess.TimeoutExpired):
                load.wait(10)
    return seen


def processor() -> str:
    """Return the processor's name, as Linux has it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the volumes are made, for instance /dev/shm")
    parser.add_argument("--size", type=int, default=1024, help="of each volume, in MiB (1024)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each job in each round (2)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--only", action="append", help="measure only these programs; repeatable")
    parser.add_argument("--no-ext4", action="store_true", help="leave ext4 on a loop device out")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="only load lukshdrfs, and watch its memory")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--chart", type=Path, help="draw an SVG there")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    arguments = parse()
    bench = Workbench(Path(tempfile.mkdtemp(dir=arguments.folder)) / "bench", arguments.size << 20)
    try:
        bench.set_up()
        chosen = {
            name: contender for name, contender in contenders().items() if not arguments.only or name in arguments.only
        }
        document: dict[str, Any] = {
            "processor": processor(), "cores": os.cpu_count(), "kernel": platform.release(), "versions": versions(),
            "size_mib": arguments.size, "command": " ".join(sys.argv),
        }  # fmt: skip
        if arguments.soak:
            document["soak_pss_mib"] = soak(bench, chosen["lukshdrfs"], arguments.soak)
            print(document["soak_pss_mib"])
        else:
            samples = measure(bench, chosen, arguments)
            found = medians(samples)
            document |= {"rounds": arguments.rounds, "seconds": arguments.seconds, "medians": found, "samples": samples}
            print(f"{document['processor']}, {document['cores']} cores, Linux {document['kernel']}")
            print(f"{document['versions']}")
            print(f"medians of {arguments.rounds} rounds; in brackets CPU time of the daemon\n\n{table(found)}")
            for name, rows in found.items():
                largest = max(result["pss"] for result in rows.values() if "pss" in result)
                ready = f", {rows['mount']['value']:.2f} s to mount" if "mount" in rows else ""
                print(f"{name}: {largest:.0f} MiB at most{ready}")
            if arguments.chart:
                values = {name: {job: row["value"] for job, row in rows.items()} for name, rows in found.items()}
                names = [job for job in (*(job.name for job in JOBS), *EXT4_JOBS) if job in values["qemu"]]
                arguments.chart.write_text(draw("Speed, QEMU's FUSE export = 1", names, values), encoding="utf-8")
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(bench.folder.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
