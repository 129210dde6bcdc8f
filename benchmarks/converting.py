"""
Measures conversions in place: beside cryptsetup's on the same file, and what they cost who uses the volume meanwhile.

    converting.py offline FOLDER [--size MIB] [--rounds N]    encrypt, reencrypt, decrypt; in interleaved rounds
    converting.py online FOLDER [--size MIB] [ZONE[/RATE]...]  latency of 4 KiB requests at depth 1

The first has each program convert the file, with its own default protection, and reading and writing it by pieces
of 16 MiB with a sync after each, without converting anything, as the least that it takes. The second runs fio beside a
conversion by steps of ZONE, with at most RATE bytes a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from contenders import BIN, run

CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
PIECE = 16 << 20
Times = dict[str, list[float]]


def timed(*command: object) -> float:
    """Return how many seconds a command takes, with all on the storage before and after."""
    os.sync()
    start = time.monotonic()
    run(*map(str, command))
    os.sync()
    return time.monotonic() - start


def rewritten(payload: Path) -> float:
    """Return how long it takes to read and write a file, a piece and a sync after the other."""
    os.sync()
    start = time.monotonic()
    with payload.open("r+b", buffering=0) as file:
        for offset in range(0, payload.stat().st_size, PIECE):
            os.pwrite(file.fileno(), os.pread(file.fileno(), PIECE, offset), offset)
            os.fdatasync(file.fileno())
    return time.monotonic() - start


def offline(folder: Path, size: int, rounds: int) -> None:
    """Print a table of both programs' speed."""
    payload, header, key = folder / "payload", folder / "header", folder / "key"
    key.write_bytes(b"x")
    with payload.open("wb") as file:
        for _ in range(size // PIECE):
            file.write(os.urandom(PIECE))
    ours = (BIN / "lukshdrfs",)
    named = ("-q", "--key-file", key, "--header", header, payload)
    theirs = ("cryptsetup", "reencrypt", "--force-offline-reencrypt", "--disable-locks")
    commands = {
        ("encrypt", "lukshdrfs"): (*ours, "encrypt", *CHEAP, *named),
        ("reencrypt", "lukshdrfs"): (*ours, "reencrypt", *CHEAP, *named),
        ("decrypt", "lukshdrfs"): (*ours, "decrypt", *named),
        ("encrypt", "cryptsetup"): (*theirs, "--encrypt", "--type", "luks2", *CHEAP, *named),
        ("reencrypt", "cryptsetup"): (*theirs, *CHEAP, *named),
        ("decrypt", "cryptsetup"): (*theirs, "--decrypt", *named),
    }
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        found.setdefault(("read and write", "-"), []).append(rewritten(payload))
        for what, command in commands.items():
            if what[0] == "encrypt":
                header.unlink(missing_ok=True)
            found.setdefault(what, []).append(timed(*command))
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    print("| what | program | median | speed | rounds |\n| --- | --- | ---: | ---: | --- |")
    for (what, program), seconds in found.items():
        median = statistics.median(seconds)
        each = ", ".join(f"{one:.2f}" for one in seconds)
        print(f"| {what} | {program} | {median:.2f} s | {size / 1e6 / median:.0f} MB/s | {each} |")


def latency(image: Path, kind: str) -> str:
    """Return what fio says of requests on an image."""
    told = run(
        "fio", "--name=x", f"--filename={image}", f"--rw={kind}", "--bs=4k", "--iodepth=1", "--direct=1",
        "--ioengine=psync", "--time_based", "--runtime=5", f"--size={image.stat().st_size}", "--norandommap",
        "--output-format=json",
    )  # fmt: skip
    job = json.loads(told)["jobs"][0]["read" if kind == "randread" else "write"]
    tails = job["clat_ns"]["percentile"]
    return f"{tails['99.000000'] / 1000:.0f} µs | {tails['99.900000'] / 1000:.0f} µs | {job['iops']:,.0f}/s"


def online(folder: Path, size: int, forms: list[str]) -> None:
    """Print a table of latencies, of the idle volume and beside conversions."""
    payload, header, key, mountpoint = (folder / name for name in ("payload", "header", "key", "mnt"))
    key.write_bytes(b"x")
    mountpoint.mkdir()
    program, image = BIN / "lukshdrfs", mountpoint / "image"
    named = ("-q", "--key-file", key, "--header", header)
    run(program, "create", *named, "--size", str(size), *CHEAP, payload)
    print(
        "| step, rate | job | p99 | p99.9 | rate of requests | converted |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for form in ["idle", *forms]:
        zone, _, rate = form.partition("/")
        options: list[str] = []
        if form != "idle":
            if not json.loads(run(program, "info", "--json", "--header", header, payload))["conversion"]:
                run(program, "reencrypt", "--init-only", *named, *CHEAP, payload)
            options = ["--convert", "--hotzone-size", zone, *(["--rate", rate] if rate else [])]
        run(program, "mount", *options, *named, payload, mountpoint)
        try:
            if form == "idle":
                run("dd", "if=/dev/urandom", f"of={image}", "bs=1M", "conv=notrunc,fsync", f"count={size >> 20}")
            for kind in ("randread", "randwrite"):
                before, start = _converted(mountpoint), time.monotonic()
                told = latency(image, kind)
                speed = (_converted(mountpoint) - before) / 1e6 / (time.monotonic() - start)
                print(f"| {form} | {kind} | {told} | {speed:.0f} MB/s |", flush=True)
        finally:
            run(program, "unmount", mountpoint)


def _converted(mountpoint: Path) -> int:
    told = json.loads(run(BIN / "lukshdrfs", "status", "--json", mountpoint))
    return int(told.get("conversion", {}).get("done", 0))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["offline", "online"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("forms", nargs="*", default=["256K", "1M", "4M", "16M", "4M/100M"])
    parser.add_argument("--size", type=int, default=2048, help="of the volume, in MiB (2048)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.what == "offline":
            offline(Path(folder), arguments.size << 20, arguments.rounds)
        else:
            online(Path(folder), arguments.size << 20, arguments.forms)


if __name__ == "__main__":
    main()
