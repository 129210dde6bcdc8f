"""The fast lane's C code by itself, under sanitizers: many threads, and every byte checked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.native import NATIVE, SANITIZERS, compile_native

pytestmark = [pytest.mark.needs("gcc", "pkg-config")]

STRESS = Path(__file__).with_name("lane_stress.c")


@pytest.fixture(scope="module", params=SANITIZERS)
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program, with sanitizers."""
    target = tmp_path_factory.mktemp("native") / "lane_stress"
    rooms = ("threads", "cipher", "payload", "volume", "fuse/lane")
    modules = [f"{room}/{name}" for room in rooms for name in NATIVE[room]]
    compile_native(target, STRESS, *modules, options=SANITIZERS[request.param])
    return target


@pytest.mark.parametrize(("threads", "workers"), [(1, 1), (4, 1), (8, 2), (16, 4)])
@pytest.mark.parametrize("ending", ["end", "stop", "resize"])
def test_many_threads_see_their_own_bytes(stress: Path, threads: int, workers: int, ending: str) -> None:
    """Whatever is asked at once, each thread reads what it wrote, no sanitizer complains, and the lane ends."""
    done = subprocess.run(
        [stress, "7", str(threads), str(workers), "1000", ending],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "all as expected\n"), done.stderr


@pytest.mark.parametrize("seed", ["3", "57", "219"])
@pytest.mark.parametrize("ending", ["lock", "end-lock", "resize-lock"])
def test_locking_at_any_moment(stress: Path, seed: str, ending: str) -> None:
    """Whether requests are under way or the mount has just ended: it is locked at once, and what comes gets EIO."""
    done = subprocess.run(
        [stress, seed, "4", "2", "400", ending], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "all as expected\n"), done.stderr
