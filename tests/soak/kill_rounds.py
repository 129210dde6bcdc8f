"""
Kills processes at random moments while a volume is written to, and looks for what was acknowledged.

    kill_rounds.py FOLDER --rounds 200 --payload file|qcow2|nbd --cache writeback|writethrough|none --kill WHOM

WHOM: `daemon` (lukshdrfs), `store` (the NBD server, which forgets what was not flushed; or QEMU's process of a qcow2
image), `both` at once, or `any` of these by turns. After each round the volume is opened again, and every sector must
be the one that was acknowledged last, or one that was on its way when the kill came. Where a store died together with
the daemon, what was acknowledged by fsync counts, and with the cache mode writethrough what was acknowledged at all.
Prints the rounds and writes; exit status 1 where something was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK = 4096
SECTOR = 512
BLOCKS = 512
WRITERS = 4
PROGRAM = Path(sys.executable).with_name("lukshdrfs")
_RECORD = struct.Struct("<QQ")


def contents(block: int, version: int) -> bytes:
    """Return a block whose every sector says what it is; version 0 is what was there at first."""
    if version == 0:
        return bytes(BLOCK)
    record = _RECORD.pack(block, version)
    return (record + hashlib.sha512(record).digest()[: 64 - len(record)]) * (BLOCK // 64)


class Writer(threading.Thread):
    """Writes its blocks again and again, and keeps account of what was acknowledged."""

    def __init__(self, image: Path, number: int, versions: list[int], seed: int) -> None:
        super().__init__()
        self.image, self.number, self.rng = image, number, random.Random(seed)
        self.attempted, self.acknowledged, self.synced = [*versions], [*versions], [*versions]
        self.writes = self.syncs = 0

    def run(self) -> None:
        """Write until the first error, which is the kill."""
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | (os.O_DIRECT if self.number % 2 else 0)
            descriptor = os.open(self.image, flags)
            try:
                self.write_all(descriptor)
            finally:
                os.close(descriptor)

    def write_all(self, descriptor: int) -> None:
        """Write blocks at random, and sync now and then."""
        with mmap.mmap(-1, BLOCK) as buffer:  # direct I/O wants a page
            while True:
                block = self.rng.randrange(BLOCKS // WRITERS) * WRITERS + self.number
                self.attempted[block] += 1
                buffer[:] = contents(block, self.attempted[block])
                if os.pwritev(descriptor, [buffer], block * BLOCK) != BLOCK:
                    raise OSError("short write")
                self.acknowledged[block] = self.attempted[block]
                self.writes += 1
                if self.rng.random() < 0.02:
                    before = [*self.acknowledged]
                    os.fdatasync(descriptor)
                    self.synced = before
                    self.syncs += 1


class Rounds:
    """A volume, and what is known of its blocks."""

    def __init__(self, folder: Path, payload: str, cache: str, seed: int) -> None:
        self.folder, self.kind, self.cache, self.rng = folder, payload, cache, random.Random(seed)
        self.key, self.header, self.place = folder / "key", folder / "header", folder / "mnt"
        self.payload, self.socket = folder / "payload", folder / "socket"
        self.server: subprocess.Popen[bytes] | None = None
        self.versions = [0] * BLOCKS
        self.writes = self.syncs = 0
        self.place.mkdir()
        self.key.write_bytes(b"key")
        form = ["--payload-format", "qcow2"] if payload == "qcow2" else []
        self.run(
            "create", "--header", self.header, "--key-file", self.key, "--pbkdf", "pbkdf2", "--no-wipe",
            "--pbkdf-force-iterations", "1000", "--size", str(BLOCKS * BLOCK), *form, self.payload,
        )  # fmt: skip
        if payload == "nbd":
            self.serve()
        with self.mounted() as image, image.open("r+b") as file:
            file.write(bytes(BLOCKS * BLOCK))
            os.fsync(file.fileno())

    def run(self, *words: str | Path) -> None:
        """Run the program, which must succeed."""
        done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{words}: {done.stderr}")

    def serve(self) -> None:
        """Start the server that forgets."""
        self.socket.unlink(missing_ok=True)
        self.server = subprocess.Popen(
            ["nbdkit", "--foreground", "--unix", self.socket, "--filter=cache", "file", self.payload, "cache=writeback"]
        )
        while not self.socket.exists():
            time.sleep(0.002)
        time.sleep(0.01)

    def mount(self) -> int:
        """Mount, and return the daemon's process."""
        source = f"nbd+unix:///?socket={self.socket}" if self.kind == "nbd" else str(self.payload)
        form = ["--payload-format", "qcow2"] if self.kind == "qcow2" else []
        self.run(
            "mount", "--cache", self.cache, "--header", self.header, "--key-file", self.key, *form, source, self.place
        )
        return int(os.getxattr(self.place / "image", "user.lukshdrfs.pid"))

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount for a while."""
        self.mount()
        try:
            yield self.place / "image"
        finally:
            self.run("unmount", self.place)

    def stores(self, daemon: int) -> list[int]:
        """Return the processes that keep the payload."""
        if self.server is not None:
            return [self.server.pid]
        children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
        found = [int(pid) for pid in children]
        for task in Path(f"/proc/{daemon}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return [*{*found}]

    def round(self, whom: str) -> None:
        """Write, kill, open again, compare."""
        daemon = self.mount()
        stores = self.stores(daemon)
        writers = [Writer(self.place / "image", n, self.versions, self.rng.getrandbits(32)) for n in range(WRITERS)]
        for writer in writers:
            writer.start()
        time.sleep(self.rng.uniform(0.02, 0.4))
        if whom in ("store", "both"):
            for pid in stores:
                os.kill(pid, signal.SIGKILL)
        if whom == "store":
            if self.server is not None:
                self.server.wait()
                self.serve()
            self.wait_until_it_goes_on(writers)
            time.sleep(self.rng.uniform(0.0, 0.2))
        os.kill(daemon, signal.SIGKILL)
        for writer in writers:
            writer.join()
        self.clean_up(daemon, stores, whom)
        self.check(writers, durable=whom == "both" and self.cache != "writethrough")

    def wait_until_it_goes_on(self, writers: list[Writer]) -> None:
        """Wait until all writers have gone on with another store: then it has been given what the first one forgot."""
        before = [writer.writes for writer in writers]
        deadline = time.monotonic() + 20
        while any(writer.writes < count + 2 for writer, count in zip(writers, before, strict=True)):
            if time.monotonic() > deadline:
                raise SystemExit("nobody can write any more, though the store is there again")
            time.sleep(0.005)

    def clean_up(self, daemon: int, stores: list[int], whom: str) -> None:
        """Take away what a killed daemon leaves, and see that it is not more."""
        subprocess.run(["fusermount3", "-u", "-z", self.place], check=False, capture_output=True)
        deadline = time.monotonic() + 20
        gone = [daemon] if self.kind == "nbd" else [daemon, *stores]
        while any(Path(f"/proc/{pid}").exists() for pid in gone) and time.monotonic() < deadline:
            time.sleep(0.005)
        if any(Path(f"/proc/{pid}").exists() for pid in gone):
            raise SystemExit(f"a process is left of {gone}")
        if whom == "both" and self.server is not None:
            self.server.wait()
            self.serve()

    def check(self, writers: list[Writer], *, durable: bool) -> None:
        """Compare every sector with what it may be."""
        with self.mounted() as image:
            data = image.read_bytes()
        for writer in writers:
            self.writes += writer.writes
            self.syncs += writer.syncs
            for block in range(writer.number, BLOCKS, WRITERS):
                floor = writer.synced[block] if durable else writer.acknowledged[block]
                found = {self.version(block, at, data) for at in range(0, BLOCK, SECTOR)}
                if min(found) < floor or max(found) > writer.attempted[block]:
                    raise SystemExit(
                        f"block {block} has versions {sorted(found)}; acknowledged {writer.acknowledged[block]}, "
                        f"synced {writer.synced[block]}, attempted {writer.attempted[block]}"
                    )
                self.versions[block] = max(found)

    def version(self, block: int, at: int, data: bytes) -> int:
        """Return which version a sector is of; -1 for none."""
        sector = data[block * BLOCK + at :][:SECTOR]
        if not any(sector):
            return 0
        number, version = _RECORD.unpack_from(sector)
        whole = number == block and version < 1 << 40 and sector == contents(block, version)[at:][:SECTOR]
        return version if whole else -1

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            self.server.terminate()
            self.server.wait()


def main() -> int:
    """Read the command line and go round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty one")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--payload", choices=("file", "qcow2", "nbd"), default="file")
    parser.add_argument("--cache", choices=("writeback", "writethrough", "none"), default="writeback")
    parser.add_argument("--kill", choices=("daemon", "store", "both", "any"), default="any")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    whom = {"any": ("daemon", "store", "both")}.get(arguments.kill, (arguments.kill,))
    if arguments.payload == "file":
        whom = ("daemon",)
    rounds = Rounds(arguments.folder, arguments.payload, arguments.cache, arguments.seed)
    try:
        for turn in range(arguments.rounds):
            rounds.round(whom[turn % len(whom)])
    finally:
        rounds.close()
    print(json.dumps({
        "payload": arguments.payload, "cache": arguments.cache, "killed": list(whom), "rounds": arguments.rounds,
        "writes": rounds.writes, "syncs": rounds.syncs,
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
