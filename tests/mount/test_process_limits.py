"""What the limits of whoever starts us do to a mount: they are raised where that is allowed, and told where not."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cryptsetup import XTS_512
from support.mounts import LUKSHDRFS, Argument, Mounted, is_mounted, lukshdrfs
from support.volumes import MIB, MakeVolume

pytestmark = pytest.mark.needs("fuse", "cryptsetup")


def limited(limit: int, soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(limit, (soft, hard))


def run_limited(*arguments: Argument, limit: int, value: int) -> subprocess.CompletedProcess[str]:
    """Run our program with a limit that it may not raise."""
    return subprocess.run(
        [LUKSHDRFS, *arguments], preexec_fn=limited(limit, value, value),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_a_limit_of_files_is_raised_where_it_may_be(data_path: str, make_volume: MakeVolume) -> None:
    """`ulimit -S -f` in somebody's profile does not reach the daemon: a write at the end of the payload is kept."""
    volume = make_volume(XTS_512, 8 * MIB)
    command: list[Argument] = ["prlimit", f"--fsize={2 * MIB}:", LUKSHDRFS]
    options = ["--data-path", data_path]
    with (
        Mounted(volume.payload, *options, header=volume.header, key_file=volume.key_file, command=command) as mount,
        mount.image.open("r+b", buffering=0) as image,
    ):
        image.seek(-512, 2)
        assert image.write(b"x" * 512) == 512


def test_a_payload_that_is_larger_than_allowed(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Writes would fail in the middle of it, so it is not mounted for writing; the limit is named. Reading works."""
    volume = make_volume(XTS_512, 8 * MIB)
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    words: list[Argument] = ["mount", "--header", volume.header, "--key-file", volume.key_file]
    done = run_limited(*words, volume.payload, mountpoint, limit=resource.RLIMIT_FSIZE, value=2 * MIB)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert "ulimit -f" in line
    assert str(2 * MIB) in line
    assert not is_mounted(mountpoint)

    done = run_limited(*words, "-r", volume.payload, mountpoint, limit=resource.RLIMIT_FSIZE, value=2 * MIB)
    assert done.returncode == 0, done.stderr
    assert lukshdrfs("unmount", mountpoint).returncode == 0


def test_a_limit_of_processor_time_is_told(make_volume: MakeVolume, tmp_path: Path) -> None:
    """The kernel ends a process that has used it up, whatever it serves."""
    volume = make_volume(XTS_512, 8 * MIB)
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    words: list[Argument] = ["mount", "--header", volume.header, "--key-file", volume.key_file]
    done = run_limited(*words, volume.payload, mountpoint, limit=resource.RLIMIT_CPU, value=1000)
    assert done.returncode == 0
    assert "1000 s of processor time" in done.stderr
    assert lukshdrfs("unmount", mountpoint).returncode == 0


@pytest.mark.parametrize(("size", "value", "what"), [("8M", 4 * MIB, "payload"), ("1M", 2 * MIB, "header")])
def test_create_makes_nothing_past_the_limit(size: str, value: int, what: str, tmp_path: Path) -> None:
    """Neither a payload nor a header that cannot be written to its end; nothing is left."""
    key = tmp_path / "key"
    key.write_bytes(b"key")
    folder = tmp_path / "new"
    folder.mkdir()
    words: list[Argument] = ["create", "--iter-time", "10", "--header", folder / "header", "--key-file", key]
    done = run_limited(
        *words, "--pbkdf", "pbkdf2", "--size", size, folder / "payload", limit=resource.RLIMIT_FSIZE, value=value
    )
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert what in line
    assert "ulimit -f" in line
    assert list(folder.iterdir()) == []
