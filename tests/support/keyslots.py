"""Which secret opens which keyslot, by our word and by cryptsetup's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from support.cryptsetup import keyslot_of
from support.mounts import Argument, lukshdrfs

from lukshdrfs.errors import NoUsableKeyslot, WrongKey
from lukshdrfs.headers import read_header
from lukshdrfs.luks.keys.unlock import unlock
from lukshdrfs.luks.keyslots import volume_digest
from lukshdrfs.luks.model import Header
from lukshdrfs.secret import SecretBytes

Secret = str
"""A secret of the tests; text, for QEMU takes nothing else."""


def key_file(folder: Path, secret: Secret) -> Path:
    """Return the file that holds a secret."""
    path = folder / f"key-{secret}"
    if not path.exists():
        path.write_text(secret)
    return path


def run(*arguments: Argument) -> None:
    """Run our program, which must succeed."""
    done = lukshdrfs(*arguments)
    assert done.returncode == 0, f"{arguments}: {done.returncode} {done.stderr}"


def opened_by_us(header: Path, key: Path, *options: str) -> int | None:
    """Return the number of the keyslot that `key test` opens with a key file, None if it opens none."""
    done = lukshdrfs("key", "test", *options, "--key-file", key, header)
    opened = re.fullmatch(r"keyslot (\d+)\n", done.stdout)
    assert (done.returncode == 0) == bool(opened), done.stderr
    assert done.returncode in (0, 1, 2), done.stderr
    return int(opened[1]) if opened else None


def _opened(header: Header, key: Path) -> int | None:
    """Do as `opened_by_us`, without a process of its own: there are many secrets to try."""
    try:
        with SecretBytes.copy_of(key.read_bytes()) as secret:
            found = unlock(header, volume_digest(header), secret)
    except (WrongKey, NoUsableKeyslot):
        return None
    found.volume_key.wipe()
    return found.keyslot


def assert_opens(header: Path, folder: Path, expected: Mapping[Secret, int | None]) -> None:
    """Each secret opens the keyslot that it should, None for none, for cryptsetup and for us."""
    keys = {secret: key_file(folder, secret) for secret in expected}
    assert {secret: keyslot_of(header, key) for secret, key in keys.items()} == expected
    parsed = read_header(header)
    assert {secret: _opened(parsed, key) for secret, key in keys.items()} == expected
