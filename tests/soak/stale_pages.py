"""
Look for old data after direct writes for as long as asked, on each data path and in each cache mode in turn.

    stale_pages.py FOLDER --seconds 3600 [--turn 20]

Prints what was written and read, by data path and cache mode, as JSON. Exit status 1 at the first block that is old.
It takes gcc, and losetup as root for the half of it that goes through a loop device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

LUKSHDRFS = Path(sys.executable).with_name("lukshdrfs")
SOURCE = Path(__file__).with_suffix(".c")
SIZE = "8M"


def run(*words: str | Path) -> str:
    """Run a program to its end and return what it prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Volume:
    """A volume of its own in a folder, mounted as asked."""

    def __init__(self, folder: Path) -> None:
        self.program, self.image = folder / "stale_pages", folder / "plain" / "image"
        self._folder = folder
        run("gcc", "-O2", "-o", self.program, SOURCE, "-lpthread")
        (folder / "key").write_bytes(os.urandom(32))
        run(
            LUKSHDRFS, "create", "--header", folder / "header", "--size", SIZE, "--key-file", folder / "key",
            "--pbkdf", "pbkdf2", "--iter-time", "10", folder / "payload",
        )  # fmt: skip
        self.image.parent.mkdir()

    def look(self, data_path: str, cache: str, how: str, *, loop: bool, seconds: int) -> tuple[int, int]:
        """Return how often was written and how many blocks were read. Exits the program if one was old."""
        folder = self._folder
        run(
            LUKSHDRFS, "mount", "--data-path", data_path, "--cache", cache, "--header", folder / "header",
            "--key-file", folder / "key", folder / "payload", self.image.parent,
        )  # fmt: skip
        target = run("losetup", "--find", "--show", "--direct-io=on", self.image).strip() if loop else self.image
        try:
            done = subprocess.run(
                [self.program, target, self.image, str(seconds), how], capture_output=True, text=True, check=False
            )
        finally:
            if loop:
                run("losetup", "--detach", target)
                while Path("/sys/block", Path(target).name, "loop").exists():  # until its last user has closed it
                    time.sleep(0.05)
            run(LUKSHDRFS, "unmount", self.image.parent)
        if done.returncode:
            sys.exit(f"{data_path}, {cache}, {how}{', loop device' if loop else ''}: {done.stdout}{done.stderr}")
        found = re.match(r"(\d+) writes of \d+ bytes, (\d+) blocks read", done.stdout)
        assert found, done.stdout
        return int(found[1]), int(found[2])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--turn", type=int, default=20)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    volume = Volume(arguments.folder)
    seconds: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    blocks: Counter[str] = Counter()
    end = time.monotonic() + arguments.seconds
    combinations = itertools.cycle(
        itertools.product(
            ["aio", "uring", "pwrite"],
            ["native", "python"],
            ["writeback", "writethrough", "none"],
            [False, True] if os.geteuid() == 0 else [False],
        )
    )
    for how, data_path, cache, loop in combinations:
        if time.monotonic() > end:
            break
        written, read = volume.look(data_path, cache, how, loop=loop, seconds=arguments.turn)
        name = f"{data_path}, {cache}"
        seconds[name] += arguments.turn
        writes[name] += written
        blocks[name] += read
    print(
        json.dumps(
            {n: {"seconds": seconds[n], "writes": writes[n], "blocks_read": blocks[n]} for n in writes}, indent=1
        )
    )


if __name__ == "__main__":
    main()
