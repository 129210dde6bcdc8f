"""
Conversions that are killed again and again, and finished by lukshdrfs and cryptsetup in turn: nothing is lost.

    conversion_kills.py ROUNDS [FOLDER]

For each of {encrypt, reencrypt, decrypt} x {checksum, journal} x {online over both data paths, offline}: so many kills.
Where the volume is mounted, a load writes and syncs meanwhile, and every synced block has to be there. Run it with the
Python that has lukshdrfs installed.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.conversions import CHEAP, MODES, Conversion, conversion
from support.image_load import Load
from support.mounts import LUKSHDRFS, Mounted, lukshdrfs
from support.processes import kill
from support.waiting import wait_until

from lukshdrfs.headers import read_header

SIZE = 6 << 20


def killed_online(made: Conversion, path: str, rng: random.Random) -> Conversion:
    """Kill the daemon while it converts and a load writes; return the volume as it has to be."""
    mountpoint = made.folder.parent / "mnt"
    mountpoint.mkdir(exist_ok=True)
    options = ("--convert", "--hotzone-size", "128K", "--rate", "8M", "--data-path", path)
    with Mounted(made.payload, *options, header=made.header, key_file=made.key, mountpoint=mountpoint) as mount:
        load = Load(mount.image, made.plain, rng)
        with load.running():
            wait_until(lambda: load.count, "the first write")
            time.sleep(rng.random() * 0.3)
            load.end()
            kill(mount.pid)
        done = lukshdrfs("unmount", mount.mountpoint)
        assert done.returncode == 0, done.stderr
    found = made.payload.read_bytes() if made.mode == "decrypt" and is_over(made) else made.read()
    assert load.missing(found) == [], load.missing(found)
    return made.with_plain(found)


def killed_offline(made: Conversion, rng: random.Random) -> Conversion:
    """Kill the command while it converts."""
    cost = () if made.mode == "decrypt" else CHEAP
    command = [LUKSHDRFS, made.mode, "-q", *cost, "--hotzone-size", "64K", "--rate", "12M", *made.named]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(0.35 + rng.random() * 0.3)
    process.kill()
    process.wait()
    return made


def is_over(made: Conversion) -> bool:
    """Whether the header says that all is converted."""
    return not read_header(made.header, warn=False).requirements


def finished_by_theirs(made: Conversion) -> None:
    """Have cryptsetup recover and finish it."""
    made.repaired_by_theirs()
    if not is_over(made):
        made.theirs("--resume-only", "--hotzone-size", "64k")


def rounds(count: int, mode: str, resilience: str, way: str, folder: Path) -> None:
    """Kill so often, on as many volumes as that takes."""
    rng = random.Random(f"{mode} {resilience} {way}")
    kills = 0
    for number in itertools.count():
        if kills >= count:
            break
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = conversion(mode, Path(place) / "volume", SIZE)
            made.ours("--init-only", "--resilience", resilience)
            for turn in range(rng.randrange(1, 5)):
                if is_over(made):
                    break
                made = killed_offline(made, rng) if way == "offline" else killed_online(made, way, rng)
                kills += 1
                if turn % 2 and not is_over(made):
                    made.repaired_by_theirs()
            if not is_over(made):
                made.ours() if number % 2 else finished_by_theirs(made)
            made.check()
    print(f"{mode} {resilience} {way}: {kills} kills, {number} volumes, nothing lost", flush=True)


def main() -> None:
    """Do all of it."""
    count, folder = int(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.gettempdir())
    for way, mode, resilience in itertools.product(("native", "python", "offline"), MODES, ("checksum", "journal")):
        rounds(count, mode, resilience, way, folder)


if __name__ == "__main__":
    main()
