"""cryptsetup as the second opinion: it makes, encrypts and decrypts volumes without the kernel's help."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from support.tools import program


@dataclasses.dataclass(frozen=True)
class Format:
    """A LUKS format, by cryptsetup's names."""

    type: str
    cipher: str
    key_bits: int
    sector_size: int = 512

    @property
    def id(self) -> str:
        return f"{self.type}-{self.cipher}-{self.key_bits}-s{self.sector_size}"

    @property
    def options(self) -> list[str]:
        """What cryptsetup takes, with the cheapest key derivation there is."""
        options = ["--type", self.type, "--cipher", self.cipher, "--key-size", str(self.key_bits)]
        if self.type == "luks2":
            options += ["--sector-size", str(self.sector_size), "--pbkdf", "pbkdf2"]
            # small areas: what the tests copy about is not the 16 MiB that cryptsetup makes by itself
            options += ["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "1m"]
        return [*options, "--pbkdf-force-iterations", "1000"]


XTS_512 = Format("luks2", "aes-xts-plain64", 512)
XTS_4096 = Format("luks2", "aes-xts-plain64", 512, 4096)
LUKS1_XTS = Format("luks1", "aes-xts-plain64", 512)

LUKS2_FORMATS = [
    Format("luks2", cipher, key_bits, sector_size)
    for cipher, key_bits in [
        ("aes-xts-plain64", 256),
        ("aes-xts-plain64", 512),
        ("aes-cbc-essiv:sha256", 256),
    ]
    for sector_size in (512, 4096)
]
LUKS1_FORMATS = [LUKS1_XTS, Format("luks1", "aes-cbc-essiv:sha256", 256)]


@dataclasses.dataclass(frozen=True)
class LuksFiles:
    """A payload, its detached header and a key file that opens it."""

    payload: Path
    header: Path
    key_file: Path

    @property
    def secret(self) -> bytes:
        return self.key_file.read_bytes()


def cryptsetup(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    """Run cryptsetup and return its output."""
    done = try_cryptsetup(*arguments, stdin=stdin)
    assert done.returncode == 0, f"cryptsetup {arguments}: {done.returncode} {done.stderr.decode()}"
    return done.stdout


def make_header(files: LuksFiles, layout: Format) -> None:
    """Make a header; the payload stays as it is."""
    cryptsetup("luksFormat", *layout.options, "--key-file", files.key_file, "--header", files.header, files.payload)


def encrypt(files: LuksFiles, layout: Format) -> None:
    """Encrypt the payload in place and make its header (LUKS2 only: for LUKS1 it wants device-mapper)."""
    cryptsetup(
        "reencrypt", "--encrypt", *layout.options, "--force-offline-reencrypt", "--disable-locks",
        "--resilience", "none", "--key-file", files.key_file, "--header", files.header, files.payload,
    )  # fmt: skip


def decrypted(files: LuksFiles) -> bytes:
    """Return the plaintext, as cryptsetup decrypts copies of payload and header (LUKS2 only)."""
    payload, header = files.payload.with_suffix(".plain"), files.header.with_suffix(".used")
    shutil.copyfile(files.payload, payload)
    shutil.copyfile(files.header, header)
    cryptsetup(
        "reencrypt", "--decrypt", "--force-offline-reencrypt", "--disable-locks", "--resilience", "none",
        "--key-file", files.key_file, "--header", header, payload,
    )  # fmt: skip
    return payload.read_bytes()


def try_cryptsetup(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run cryptsetup, which may fail."""
    return subprocess.run(
        [program("cryptsetup"), "--batch-mode", *arguments], input=stdin, capture_output=True, check=False
    )


def keyslot_of(header: Path, key_file: Path, *options: str) -> int | None:
    """Return the number of the keyslot that cryptsetup opens with a key file, None if it opens none."""
    done = try_cryptsetup("open", "--test-passphrase", "--verbose", *options, "--key-file", key_file, header)
    opened = re.search(rb"^Key slot (\d+) unlocked\.$", done.stdout, re.MULTILINE)
    assert (done.returncode == 0) == bool(opened), done.stderr.decode()
    return int(opened[1]) if opened else None


def dump(header: Path) -> str:
    """Return what cryptsetup says about a header, without the line that names it."""
    return cryptsetup("luksDump", header).decode().partition("\n")[2]


def json_metadata(header: Path) -> dict[str, Any]:
    """Return the metadata of a LUKS2 header as cryptsetup has read it."""
    found = json.loads(cryptsetup("luksDump", "--dump-json-metadata", header))
    assert isinstance(found, dict)
    return found


def volume_key(files: LuksFiles) -> bytes:
    """Return the volume key that the header holds."""
    target = files.header.with_suffix(".volume-key")
    target.unlink(missing_ok=True)
    cryptsetup(
        "luksDump",
        "--dump-volume-key",
        "--volume-key-file",
        target,
        "--key-file",
        files.key_file,
        files.header,
    )
    return target.read_bytes()
