"""
An ordinary user.

It lives in a mount namespace of its own, where /etc/passwd knows it, /dev/fuse is open to all, as everywhere but in
containers, and the way to the program is, too (it may lie below root's home). So nothing of the machine is changed, and
all mounts are gone with the last process in there.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.namespaces import LEAVE_FOREIGN_MOUNTS
from support.tools import program

NUMBER = 61234
SOMEBODY_ELSE = 61235

PREPARE = r"""
set -eu
umask 022
stash=$1 entry=$2 configuration=$3
shift 3
mount -t tmpfs -o mode=755 none "$stash"

cp /etc/passwd "$stash/passwd"
printf '%s\n' "$entry" >>"$stash/passwd"
mount --bind "$stash/passwd" /etc/passwd
printf '%s\n' "$configuration" >"$stash/fuse.conf"
mount --bind "$stash/fuse.conf" /etc/fuse.conf
cp -a /dev/fuse "$stash/fuse"
chmod 666 "$stash/fuse"
mount --bind "$stash/fuse" /dev/fuse

# pairs of a folder that others have to reach, and the closed one above it
number=0
for word in "$@"; do
    if [ $((number % 2)) = 0 ]; then mkdir "$stash/$number"; mount --bind "$word" "$stash/$number"; fi
    number=$((number + 1))
done
number=0 folder=
for word in "$@"; do
    if [ $((number % 2)) = 0 ]; then
        folder=$word
    else
        if [ ! -e "$word/.covered" ]; then mount -t tmpfs -o mode=755 none "$word"; : >"$word/.covered"; fi
        mkdir -p "$folder"
        mount --bind "$stash/$((number - 1))" "$folder"
    fi
    number=$((number + 1))
done
echo ready
cat >/dev/null # until the other end of the pipe is closed
"""


@dataclass(frozen=True)
class OrdinaryUser:
    """Runs commands as the user, and beside it."""

    home: Path
    """A folder that belongs to it."""

    holder: int
    """The process that holds the namespace."""

    def command(self, number: int = NUMBER) -> list[str]:
        """Return what is put in front of a command, to run it in the user's namespace, as this user."""
        return [
            program("nsenter"), f"--mount=/proc/{self.holder}/ns/mnt",
            program("setpriv"), f"--reuid={number}", f"--regid={number}", "--clear-groups",
            "env", f"--chdir={self.home}", f"HOME={self.home}",
        ]  # fmt: skip

    def run(self, *command: str | Path, number: int = NUMBER) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, or as another one."""
        return subprocess.run(
            [*self.command(number), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )


def _closed_above(folder: Path) -> Path | None:
    """Return the first folder on the way that is closed to others."""
    return next((parent for parent in reversed(folder.parents) if not parent.stat().st_mode & 0o001), None)


@contextlib.contextmanager
def ordinary_user(folder: Path, configuration: str = "") -> Iterator[OrdinaryUser]:
    """Have a user with a home in `folder`, and with this /etc/fuse.conf."""
    home = folder / "home"
    home.mkdir()
    os.chown(home, NUMBER, NUMBER)
    entry = f"somebody:x:{NUMBER}:{NUMBER}::{home}:/bin/sh"
    pairs = []
    for needed in dict.fromkeys([Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2], home]):
        closed = _closed_above(needed)
        if closed is not None:
            pairs += [needed, closed]
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as stash,
        subprocess.Popen(
            [
                program("unshare"), "--mount", "--propagation=private",
                "sh", "-c", f"{LEAVE_FOREIGN_MOUNTS}{PREPARE}", "sh", stash, entry, configuration, *pairs,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as holder,
    ):  # fmt: skip
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise AssertionError(f"no namespace for the user: {holder.communicate()}")
        try:
            yield OrdinaryUser(home, holder.pid)
        finally:
            holder.communicate()
