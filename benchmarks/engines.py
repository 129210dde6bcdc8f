"""
Measures payloads that are no files, side by side: a qcow2 image, and a raw one behind an NBD server on a unix socket.

The same LUKS1 volume (header attached, aes-256-xts, 512-byte sectors) as lukshdrfs shows it, and as QEMU's luks driver
behind its FUSE export does, in interleaved rounds. The servers are qemu-nbd and nbdkit's file plugin; with `--delay`,
nbdkit answers each request late, as a server far away does. In brackets is the CPU time of all but the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from contenders import (
    BEFORE,
    PATIENCE_S,
    Running,
    Workbench,
    lukshdrfs_mount,
    qemu_luks,
    qemu_program,
    run,
    versions,
    wait_for,
)
from jobs import JOBS, Result, fio
from mount import fill, medians, processor

CHOSEN = ("seq read direct qd8", "seq write direct qd8", "rand read 4k qd1", "rand read 4k qd32", "rand write 4k qd1",
          "rand write 4k qd32", "write 4k, fsync each")  # fmt: skip


@dataclass(frozen=True)
class Store:
    """Where the payload is."""

    payload: Path | str
    options: tuple[str, ...]
    """Of lukshdrfs mount."""
    nodes: tuple[str, ...]
    """QEMU's, the last one called `file`."""


@contextlib.contextmanager
def qcow2(bench: Workbench) -> Iterator[Store]:
    """Give the volume as a qcow2 image."""
    image = bench.folder / "luks1.qcow2"
    if not image.exists():
        run(qemu_program("qemu-img") or "qemu-img", "convert", "-f", "raw", "-O", "qcow2", bench.luks1, image)
    protocol = f"driver=file,node-name=protocol,filename={image}"
    yield Store(image, ("--payload-format", "qcow2"), (protocol, "driver=qcow2,node-name=file,file=protocol"))


def behind(*server: str) -> Callable[[Workbench], AbstractContextManager[Store]]:
    """Give the volume by a server, whose command line has SOCKET and FILE in it."""

    @contextlib.contextmanager
    def store(bench: Workbench) -> Iterator[Store]:
        socket = bench.folder / "store.socket"
        places = {"SOCKET": str(socket), "FILE": str(bench.luks1)}
        process = subprocess.Popen([places.get(word, word) for word in server])
        try:
            wait_for(socket.exists, f"{server[0]}")
            node = f"driver=nbd,node-name=file,server.type=unix,server.path={socket}"
            yield Store(f"nbd+unix:///?socket={socket}", (), (node,))
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
            socket.unlink(missing_ok=True)

    return store


def stores(delay: str | None) -> dict[str, Callable[[Workbench], AbstractContextManager[Store]]]:
    """Return what the payload may be in."""
    qemu_nbd = qemu_program("qemu-nbd") or "qemu-nbd"
    nbdkit = ("nbdkit", "-f", "-U", "SOCKET")
    if delay:
        slow = ("--filter=delay", "file", "FILE", f"rdelay={delay}", f"wdelay={delay}")
        return {f"nbdkit, {delay} late": behind(*nbdkit, *slow)}
    return {
        "qcow2": qcow2,
        "qemu-nbd": behind(qemu_nbd, "-f", "raw", "--persistent", "--shared=16", "-k", "SOCKET", "FILE"),
        "nbdkit": behind(*nbdkit, "file", "FILE"),
    }


def programs() -> dict[str, Callable[[Workbench, Store], AbstractContextManager[Running]]]:
    """Return what is compared."""
    found: dict[str, Callable[[Workbench, Store], AbstractContextManager[Running]]] = {
        "lukshdrfs": lambda bench, store: lukshdrfs_mount(bench, store.payload, *store.options)
    }
    if BEFORE:
        older = Path(BEFORE)
        found["before"] = lambda bench, store: lukshdrfs_mount(bench, store.payload, *store.options, programs=older)
    return found | {"qemu": lambda bench, store: qemu_luks(bench, *store.nodes)}


def measure(bench: Workbench, arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, list[Result]]]]:
    """Return each result of each store, program, job and round."""
    found: dict[str, dict[str, dict[str, list[Result]]]] = {}
    for turn in range(arguments.rounds + 1):
        for store_name, store in stores(arguments.delay).items():
            if arguments.only and store_name not in arguments.only:
                continue
            for name, program in programs().items():
                with store(bench) as opened, program(bench, opened) as running:
                    if not arguments.delay:
                        fill(running, bench.size)
                    if turn == 0:
                        continue  # the first time blocks are allocated
                    samples = found.setdefault(store_name, {}).setdefault(name, {})
                    for job in JOBS:
                        if job.name in CHOSEN:
                            samples.setdefault(job.name, []).append(fio(job, running, bench.size, arguments.seconds))
                print(f"round {turn} of {arguments.rounds}: {store_name}: {name}", file=sys.stderr)
    return found


def table(found: dict[str, dict[str, Result]]) -> str:
    """Return a table for people."""
    names = list(found)
    lines = ["| job | " + " | ".join(names) + " | times QEMU |", "| --- |" + " ---: |" * (len(names) + 1)]
    for job in JOBS:
        if job.name not in found[names[0]]:
            continue
        cells = []
        for name in names:
            value, cpu = found[name][job.name]["value"], found[name][job.name]["cpu"]
            cells.append(f"{value:.2f} GB/s ({cpu:.2f} s/GiB)" if job.sequential else f"{value:,.0f}/s ({cpu:.0f} µs)")
        times = found["lukshdrfs"][job.name]["value"] / found["qemu"][job.name]["value"]
        lines.append(f"| {job.name} | {' | '.join(cells)} | {times:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the volumes are made, for instance /dev/shm")
    parser.add_argument("--size", type=int, default=1024, help="of the volume, in MiB (1024)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each job in each round (2)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--delay", metavar="TIME", help="measure a server that answers so late, for instance 2ms")
    parser.add_argument("--only", action="append", help="measure only these stores; repeatable")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    bench = Workbench(Path(tempfile.mkdtemp(dir=arguments.folder)) / "bench", arguments.size << 20)
    try:
        bench.set_up()
        found = {name: medians(samples) for name, samples in measure(bench, arguments).items()}
        for name, rows in found.items():
            print(f"{name}:\n\n{table(rows)}\n")
        if arguments.json:
            document = {"processor": processor(), "versions": versions(), "rounds": arguments.rounds, "medians": found}
            arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(bench.folder.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
