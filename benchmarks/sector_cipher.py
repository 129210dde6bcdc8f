"""
Measures the sector loop alone, on one core: GB/s for each cipher, sector size and crypto library.

Rounds are interleaved, so that a machine whose speed drifts is unfair to nobody; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lukshdrfs.cipher import CipherSpec, Engine, SectorCipher, usual_engine
from lukshdrfs.secret import SecretBytes

CASES = (
    ("aes-xts-plain64", 64),
    ("aes-xts-plain64", 32),
    ("aes-cbc-essiv:sha256", 32),
    ("serpent-xts-plain64", 64),
    ("twofish-xts-plain64", 64),
    ("camellia-xts-plain64", 64),
)
SECTOR_SIZES = (512, 4096)
BUFFER = 1 << 20
ENGINES: tuple[Engine, ...] = ("gcrypt", "openssl")


def engines_of(spec: CipherSpec) -> tuple[Engine, ...]:
    """Return the libraries that have a cipher."""
    return ENGINES if spec.algorithm.openssl else ("gcrypt",)


def measure(cipher: SectorCipher, seconds: float, *, encrypt: bool) -> float:
    """Return GB/s (10^9 bytes) over at least `seconds` of work."""
    data = bytearray(os.urandom(BUFFER))
    crypt = cipher.encrypt if encrypt else cipher.decrypt
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        crypt(data, 0)
        count += 1
    return count * BUFFER / elapsed / 1e9


def run(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row of medians for each cipher, sector size and library."""
    rows: list[dict[str, Any]] = []
    samples: list[tuple[SectorCipher, dict[str, list[float]]]] = []
    for text, key_size in CASES:
        spec = CipherSpec.parse(text)
        for sector_size in SECTOR_SIZES:
            for engine in engines_of(spec):
                with SecretBytes.copy_of(os.urandom(key_size)) as key:
                    cipher = SectorCipher(spec, key, sector_size, engine)
                samples.append((cipher, {"encrypt": [], "decrypt": []}))
                rows.append(
                    {
                        "cipher": text,
                        "key_bits": key_size * 8,
                        "sector_size": sector_size,
                        "engine": engine,
                        "usual": engine == usual_engine(spec),
                    }
                )
    for _ in range(rounds):
        for cipher, figures in samples:
            for way, values in figures.items():
                values.append(measure(cipher, seconds, encrypt=way == "encrypt"))
    for row, (_, figures) in zip(rows, samples, strict=True):
        for way, values in figures.items():
            row[way] = round(statistics.median(values), 2)
    return rows


def processor() -> str:
    """Return the processor's name, as Linux has it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> int:
    """Print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (7)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of work for each figure of a round (0.2)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = run(arguments.rounds, arguments.seconds)
    print(f"{processor()}, Linux {platform.release()}, one core, medians of {arguments.rounds} rounds, GB/s")
    print()
    print("| cipher | key bits | sector | library | encrypt | decrypt |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        library = f"**{row['engine']}**" if row["usual"] else row["engine"]
        figures = f"{row['encrypt']:.2f} | {row['decrypt']:.2f}"
        print(f"| {row['cipher']} | {row['key_bits']} | {row['sector_size']} | {library} | {figures} |")
    if arguments.json:
        document = {"processor": processor(), "kernel": platform.release(), "unit": "GB/s", "rows": rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
