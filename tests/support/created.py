"""Volumes of every kind that `create` makes, with two keys, the cheapest key derivation and data in them."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from support.cryptsetup import LuksFiles
from support.mounts import Argument, lukshdrfs

import lukshdrfs as package

SIZE = 256 << 10
SECRETS = (b"of the first kind", b"second\nwith a \0 in it")
SMALL = ["--luks2-metadata-size", "16K", "--luks2-keyslots-size", "1M"]

COSTS = {
    "pbkdf2": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
    "argon2i": [
        "--pbkdf", "argon2i", "--pbkdf-memory", "64", "--pbkdf-parallel", "2", "--pbkdf-force-iterations", "5",
    ],
    "argon2id": [
        "--pbkdf", "argon2id", "--pbkdf-memory", "32", "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "4",
    ],
}  # fmt: skip
"""KDFs at their cheapest; cryptsetup knows these options by the same names."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a header is to say."""

    type: str
    cipher: str
    key_bits: int
    sector_size: int
    pbkdf: str
    hash: str

    @property
    def id(self) -> str:
        return f"{self.type}-{self.cipher}-{self.key_bits}-s{self.sector_size}-{self.pbkdf}-{self.hash}"

    @property
    def options(self) -> list[str]:
        """What `create` takes."""
        options = ["--type", self.type, "--cipher", self.cipher, "--key-size", str(self.key_bits), "--hash", self.hash]
        if self.type == "luks2":
            options += ["--sector-size", str(self.sector_size), *SMALL]
        return [*options, *COSTS[self.pbkdf]]

    @property
    def is_aes(self) -> bool:
        """Whether cryptsetup opens its keyslots without the kernel's help."""
        return self.cipher.startswith("aes-")


@dataclasses.dataclass(frozen=True)
class Created:
    """A volume, the volume key that it was given, and what was written to it."""

    kind: Kind
    files: LuksFiles
    second_key_file: Path
    volume_key: bytes
    plain: bytes

    @property
    def key_files(self) -> tuple[Path, Path]:
        return self.files.key_file, self.second_key_file


def create(*arguments: Argument) -> None:
    """Run `lukshdrfs create`, which must succeed."""
    done = lukshdrfs("create", *arguments)
    assert done.returncode == 0, done.stderr


def create_kind(folder: Path, kind: Kind) -> Created:
    """Make a volume with a detached header, two keyslots and a volume key of our choice, and fill it."""
    files = LuksFiles(folder / "payload.img", folder / "header.img", folder / "key")
    second, given = folder / "second", folder / "given"
    files.key_file.write_bytes(SECRETS[0])
    second.write_bytes(SECRETS[1])
    rng = random.Random(kind.id)
    given.write_bytes(rng.randbytes(kind.key_bits // 8))
    create(
        *kind.options, "--volume-key-file", given, "--key-file", files.key_file, "--key-file", second,
        "--header", files.header, "--size", str(SIZE), files.payload,
    )  # fmt: skip
    plain = rng.randbytes(SIZE)
    with package.open_volume(files.payload, header=files.header, passphrase=files.secret) as volume:
        volume.pwrite(plain, offset=0)
        volume.flush()
    return Created(kind, files, second, given.read_bytes(), plain)
