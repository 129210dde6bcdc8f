"""The golden volumes of tests/data, unpacked where a test may do with them what it likes."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"


@dataclasses.dataclass(frozen=True)
class GoldenKey:
    """A key file of a golden volume, and what cryptsetup does with it."""

    path: Path
    opens: bool
    unbound: bool

    @property
    def secret(self) -> bytes:
        return self.path.read_bytes()


@dataclasses.dataclass(frozen=True)
class GoldenVolume:
    """One entry of the manifest; the fields are explained in tests/data/README.md."""

    name: str
    expect: str
    optional: bool
    keys: tuple[GoldenKey, ...]
    volume_size: int
    plaintext_seed: str
    plaintext_size: int
    plaintext_sha256: str
    payload_size: int
    header_file: str | None
    payload_file: str | None
    fields: dict[str, Any] = dataclasses.field(repr=False)

    def unpack(self, folder: Path) -> tuple[Path | None, Path]:
        """Write header (None: attached) and payload into `folder`."""
        header = None
        if self.header_file is not None:
            header = folder / "header.img"
            header.write_bytes(unpacked(self.header_file))
        payload = folder / "payload.img"
        payload.write_bytes(unpacked(self.payload_file) if self.payload_file else bytes(self.payload_size))
        return header, payload


def unpacked(name: str) -> bytes:
    """Return what a file of the manifest holds."""
    with gzip.open(DATA / name) as stream:
        return stream.read()


def _volume(entry: dict[str, Any]) -> GoldenVolume:
    plain = entry.get("plaintext") or {}
    return GoldenVolume(
        name=entry["name"],
        expect=entry["expect"],
        optional=entry["optional"],
        keys=tuple(GoldenKey(DATA / key["file"], key["opens"], key.get("unbound", False)) for key in entry["keys"]),
        volume_size=entry.get("volume_size") or 0,
        plaintext_seed=plain.get("seed", ""),
        plaintext_size=plain.get("size", 0),
        plaintext_sha256=plain.get("sha256", ""),
        payload_size=entry["payload_size"],
        header_file=entry["header"],
        payload_file=entry["payload"],
        fields=entry,
    )


@functools.cache
def golden_volumes() -> dict[str, GoldenVolume]:
    """Return every golden volume by its name."""
    manifest = json.loads((DATA / "manifest.json").read_text())
    return {entry["name"]: _volume(entry) for entry in manifest["fixtures"]}
