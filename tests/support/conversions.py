"""Volumes that are being converted, by our program and by cryptsetup."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

from support.cryptsetup import cryptsetup, try_cryptsetup
from support.mounts import Argument, lukshdrfs
from support.tools import program

from lukshdrfs import open_volume
from lukshdrfs.headers import read_header
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState
from lukshdrfs.payload import FilePayload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume.half_converted import HalfConverted, unlock_keys
from lukshdrfs.volume.moving.reencryption import Reencryption
from lukshdrfs.volume.moving.sides import Sides

CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
SMALL = ("--luks2-metadata-size", "16k", "--luks2-keyslots-size", "1m")
THEIRS = ("-q", "--force-offline-reencrypt", "--disable-locks")
MODES = ("encrypt", "reencrypt", "decrypt")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A volume in a folder, before, in or after a conversion; its plaintext does not change."""

    mode: str
    folder: Path
    plain: bytes = dataclasses.field(repr=False)
    key: Path
    options: tuple[str, ...] = ()
    """Of what it becomes."""
    detached: bool = True
    """Whether the header is apart from the payload."""

    @property
    def payload(self) -> Path:
        return self.folder / "payload.img"

    @property
    def header(self) -> Path:
        return self.folder / "header.img" if self.detached else self.payload

    @property
    def named(self) -> list[str | Path]:
        header: list[str | Path] = ["--header", self.header] if self.detached else []
        return ["--key-file", self.key, *header, self.payload]

    def ours(self, *options: Argument) -> None:
        """Run our command, which must succeed."""
        done = lukshdrfs(self.mode, *self.cost, *options, *self.named)
        assert done.returncode == 0, (self.mode, options, done.stderr)

    @property
    def cost(self) -> list[str]:
        begins = not self.header.exists()
        small = SMALL if self.mode == "encrypt" and begins else ()
        return [*(() if self.mode == "decrypt" else CHEAP), *small, *(self.options if self.mode != "decrypt" else ())]

    def theirs(self, *options: str) -> None:
        """Run cryptsetup's command, which must succeed."""
        cryptsetup(*self._their_command(*options))

    def killed_theirs(self, call: str, number: int, *options: str) -> bool:
        """Kill cryptsetup at a system call, the so many'th of its kind; return False if there were not so many."""
        trace = ["-f", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        done = subprocess.run(
            [program("strace"), *trace, program("cryptsetup"), *self._their_command(*options)],
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
        return done.returncode != 0

    def _their_command(self, *options: str) -> list[str | Path]:
        mode = [] if self.mode == "reencrypt" else [f"--{self.mode}"]
        kind = ["--type", "luks2", *SMALL] if self.mode == "encrypt" else []
        begins = "--resume-only" not in options
        cost = [*CHEAP, *kind, *self.options] if begins and self.mode != "decrypt" else []
        return ["reencrypt", *(mode if begins else []), *THEIRS, *cost, *options, *self.named]

    def opens_by_theirs(self) -> bool:
        """Tell whether cryptsetup finds a keyslot that the key opens."""
        return try_cryptsetup("open", "--test-passphrase", "--disable-locks", *self.named).returncode == 0

    def repaired_by_theirs(self) -> None:
        """Have cryptsetup recover what was cut off; it does nothing if nothing was."""
        done = try_cryptsetup("repair", "-q", "--disable-locks", *self.named)
        assert done.returncode == 0, done.stderr

    def attached(self) -> Conversion:
        """Return the same volume, with its header in the payload."""
        return dataclasses.replace(self, detached=False)

    def decrypted(self) -> Conversion:
        """Return the same volume, which is to be decrypted to a header that is exported beside it."""
        return dataclasses.replace(self, mode="decrypt", detached=True)

    def check(self, *, longer: bool = False) -> None:
        """The data are there, encrypted as they are to be; on a payload that may be `longer`."""
        payload = self.payload.read_bytes()
        if self.mode == "decrypt":
            assert payload == self.plain, first_difference(payload, self.plain)
            return
        assert longer or len(payload) == len(self.plain)
        assert payload != self.plain
        found = self.read()
        assert found == self.plain, first_difference(found, self.plain)

    def read(self, *, writing: bool = False) -> bytes:
        """Return what is on it, however far the conversion is; `writing` has a step recovered that was cut off."""
        secret = self.key.read_bytes()
        header = self.header if self.detached else None
        with open_volume(self.payload, header=header, passphrase=secret, read_only=not writing) as volume:
            return volume.pread(len(self.plain), 0)

    def check_by_theirs(self) -> None:
        """Cryptsetup finds the same data."""
        folder = self.folder.with_name(f"{self.folder.name}-decrypted")
        there = dataclasses.replace(self.copied(folder), mode="decrypt")
        there.theirs("--resilience", "none")
        assert there.payload.read_bytes() == self.plain, first_difference(there.payload.read_bytes(), self.plain)

    def check_as_it_is(self, *, writing: bool = False) -> None:
        """The data are there, however far the conversion is; `writing` has a step recovered that was cut off."""
        found = self.read(writing=writing)
        assert found == self.plain, first_difference(found, self.plain)

    def with_plain(self, plain: bytes) -> Conversion:
        """Return the same volume with other data that are to be on it."""
        return dataclasses.replace(self, plain=plain)

    def payload_cut_to_size(self) -> None:
        """Take away what cryptsetup adds to a file that is no multiple of its file system's blocks."""
        assert self.payload.stat().st_size - len(self.plain) in range(4096)
        os.truncate(self.payload, len(self.plain))

    def copied(self, folder: Path, *, copy: bool = True) -> Conversion:
        """Return a copy of it, as it is now; or what is in the folder already."""
        if copy:
            shutil.copytree(self.folder, folder)
        return dataclasses.replace(self, folder=folder)


def first_difference(found: bytes, wanted: bytes) -> str:
    """Say where two plaintexts begin to differ."""
    if len(found) != len(wanted):
        return f"{len(found)} bytes instead of {len(wanted)}"
    at = next(at for at in range(0, len(wanted), 512) if found[at : at + 512] != wanted[at : at + 512])
    wrong = sum(found[at : at + 512] != wanted[at : at + 512] for at in range(0, len(wanted), 512))
    return f"{wrong} sectors differ, the first at byte {at}"


def conversion(mode: str, folder: Path, size: int, *options: str, old: tuple[str, ...] = ()) -> Conversion:
    """Make a volume that is to be converted: of `size` bytes, with these options afterwards and `old` before."""
    folder.mkdir()
    key = folder.parent / "key"
    key.write_bytes(b"a \n key\0")
    made = Conversion(mode, folder, random.Random(size).randbytes(size), key, options)
    if mode == "encrypt":
        made.payload.write_bytes(made.plain)
        return made
    made.payload.touch()
    os.truncate(made.payload, size)
    done = lukshdrfs("create", *CHEAP, *SMALL, *old, "--no-wipe", *made.named)
    assert done.returncode == 0, done.stderr
    with open_volume(made.payload, header=made.header, passphrase=key.read_bytes()) as volume:
        assert volume.pwrite(made.plain, 0) == size
    return made


def steps(made: Conversion, count: int, zone: int = 64 << 10) -> bool:
    """Do so many steps of a conversion that has begun; return whether it is over."""
    header = read_header(made.header)
    state = ReencryptionState.of(header)
    assert state is not None
    with FilePayload.open(made.payload, read_only=False) as payload, LiveHeader(str(made.header), header) as live:
        half = HalfConverted(header, state, payload)
        with SecretBytes.copy_of(made.key.read_bytes()) as secret:
            keys = unlock_keys(state, lambda digest: unlock(header, digest, secret))
        with keys, Sides.opened(payload, state, keys.old, keys.new) as sides:
            left = iter(range(count))
            run = Reencryption(sides, live, state, half.size, zone)
            return run.run(lambda _done: next(left, None) is not None)
