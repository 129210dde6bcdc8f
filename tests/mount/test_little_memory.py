"""Key derivation where there is less memory than it takes: told in time, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.memory_cgroup import MemoryCgroup, memory_cgroup
from support.mounts import LUKSHDRFS, Argument, is_mounted, lukshdrfs
from support.volumes import MIB

pytestmark = pytest.mark.root

MEMORY = 128 * MIB
QUICK = ["--iter-time", "200"]
COSTLY = ["--pbkdf-memory", str(256 * 1024), "--pbkdf-force-iterations", "4"]


@pytest.fixture
def group() -> Iterator[MemoryCgroup]:
    with memory_cgroup(MEMORY) as found:
        yield found


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_bytes(os.urandom(32))
    return file


def within(group: MemoryCgroup, *arguments: Argument) -> subprocess.CompletedProcess[bytes]:
    """Run our program in a control group."""
    return subprocess.run([*group.joining(), LUKSHDRFS, *arguments], capture_output=True, timeout=60, check=False)


def test_a_keyslot_is_made_that_the_control_group_can_open(group: MemoryCgroup, key: Path, tmp_path: Path) -> None:
    """`create` and `key add` take what the group has by themselves, and what they made opens there."""
    header, payload = tmp_path / "header", tmp_path / "payload"
    made = within(group, "create", "--header", header, "--key-file", key, *QUICK, "--size", "1M", payload)
    assert made.returncode == 0, made.stderr
    added = within(group, "key", "add", "--header", header, "--key-file", key, "--new-key-file", key, *QUICK)
    assert added.returncode == 0, added.stderr
    for slot in json.loads(lukshdrfs("key", "list", "--header", header, "--json").stdout):
        assert 1024 <= slot["kdf"]["memory_kib"] <= MEMORY // 2 // 1024
    assert within(group, "key", "test", "--header", header, "--key-file", key).returncode == 0
    measured = within(group, "benchmark", "--pbkdf", "argon2id", "--iter-time", "100", "--json")
    assert json.loads(measured.stdout)["kdfs"][0]["memory_kib"] <= MEMORY // 2 // 1024


def test_more_than_the_control_group_has_is_told(group: MemoryCgroup, key: Path, tmp_path: Path) -> None:
    """Whatever asks for more ends with exit status 3 and both sizes; no payload, header or mount is left."""
    header, payload, mountpoint = tmp_path / "header", tmp_path / "payload", tmp_path / "mountpoint"
    made = lukshdrfs("create", "--header", header, "--key-file", key, *COSTLY, "--size", "1M", payload)
    assert made.returncode == 0, made.stderr
    before, new = header.read_bytes(), tmp_path / "new"
    mountpoint.mkdir()
    names = set(os.listdir(tmp_path))
    commands: list[list[Argument]] = [
        ["create", "--header", new, "--key-file", key, *COSTLY, "--size", "1M", tmp_path / "new payload"],
        ["key", "test", "--header", header, "--key-file", key],
        ["key", "add", "--header", header, "--key-file", key, "--new-key-file", key, *QUICK],
        ["key", "change", "--header", header, "--key-file", key, "--new-key-file", key, *QUICK],
        ["mount", "--header", header, "--key-file", key, payload, mountpoint],
    ]
    for command in commands:
        done = within(group, *command)
        assert done.returncode == 3, (command, done)
        (line,) = done.stderr.splitlines()
        assert b"256 MiB" in line
        assert b"128 MiB" in line
    assert not is_mounted(mountpoint)
    assert header.read_bytes() == before
    assert set(os.listdir(tmp_path)) == names
