"""`lukshdrfs check` on a payload that is mounted, and after it was used."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
from pathlib import Path

import pytest
from support.mounts import LUKSHDRFS, Mounted, lukshdrfs
from support.tools import program
from support.volumes import MIB, SECRET

from lukshdrfs.payload import FilePayload

pytestmark = pytest.mark.needs("fuse", "mkfs.ext4", "debugfs")

SIZE = 24 * MIB


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """Return a payload that `create` has filled; its header and key are in another directory."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/key").write_bytes(SECRET)
    done = lukshdrfs(
        "create", "--header", tmp_path / "keys/volume.hdr", "--size", str(SIZE), "--key-file", tmp_path / "keys/key",
        "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", tmp_path / "payload",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "payload"


def mounted(payload: Path) -> Mounted:
    keys = payload.parent / "keys"
    return Mounted(payload, header=keys / "volume.hdr", key_file=keys / "key")


def test_heavy_use_leaves_it_random(payload: Path, tmp_path: Path) -> None:
    """A file system, files, deletes, zeros over and over: while it is mounted and afterwards, nothing shows."""
    source = random.Random(1)
    text, blob = tmp_path / "keys/text", tmp_path / "keys/blob"
    text.write_text("the same line again and again\n" * 30_000)
    blob.write_bytes(source.randbytes(MIB))
    with mounted(payload) as mount:
        subprocess.run([program("mkfs.ext4"), "-q", "-F", mount.image], check=True)
        for n in range(4):
            commands = [f"write {text} text{n}", f"write {blob} blob{n}", f"rm text{n - 1}", f"rm blob{n - 2}"]
            script = tmp_path / "keys/commands"
            script.write_text("\n".join(commands))
            subprocess.run([program("debugfs"), "-w", "-f", script, mount.image], check=True, capture_output=True)
        with mount.image.open("r+b") as image:
            for _ in range(200):
                image.seek(16 * MIB + source.randrange(7 * MIB))
                image.write(bytes(source.randrange(1, 9000)))
            os.fsync(image.fileno())
        meanwhile = lukshdrfs("check", "--json", payload)
        # nothing that the mount would notice: it is still served and written to
        with mount.image.open("r+b") as image:
            image.write(bytes(4096))
    afterwards = lukshdrfs("check", "--json", payload)
    for done in (meanwhile, afterwards):
        assert done.returncode == 0, done.stdout
        document = json.loads(done.stdout)
        assert (document["verdict"], document["read"]) == ("random", SIZE)


def test_while_it_looks_it_can_be_mounted(payload: Path) -> None:
    """Its descriptor has no lock that would keep a mount out."""
    with FilePayload.open(payload, read_only=True, locked=False), mounted(payload) as mount:
        assert mount.image.stat().st_size == SIZE


def test_on_a_terminal_there_is_a_map(payload: Path) -> None:
    """Of block characters, with a legend."""
    with payload.open("r+b") as stream:
        stream.write(bytes(65536))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    with subprocess.Popen([LUKSHDRFS, "check", payload], stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # EIO: the other end is closed
            pass
        assert process.wait(20) == 1
    os.close(ours)
    lines = shown.decode().splitlines()
    assert f"█{'░' * 63}" in lines
    assert "░ random  █ zeros" in lines
    assert "each character is 64 KiB of the payload, row by row" in lines
    assert lines[-1] == "gives itself away"
