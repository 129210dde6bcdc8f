"""The machine with the kernel's dm-crypt: one boot for as many volumes as a test has, for each boot takes seconds."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.tools import dmcrypt_vm


def run_in_guest(share: Path, commands: str) -> str:
    """
    Run shell commands in the guest, in a copy of a folder that comes back afterwards, and return what they say.

    The first command that fails ends them, and the test.
    """
    done = subprocess.run(
        [dmcrypt_vm(), "run", "--share-dir", share, "--", f"set -e\n{commands}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout
