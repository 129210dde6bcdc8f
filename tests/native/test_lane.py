"""The fast lane's C code by itself, under sanitizers: many threads, and every byte checked."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from support.tools import program

pytestmark = [pytest.mark.needs("gcc", "pkg-config")]

ROOT = Path(__file__).parents[2]
ROOMS = [ROOT / "lukshdrfs" / room for room in ("cipher", "volume", "fuse")]
SOURCES = [source for room in ROOMS for source in sorted(room.glob("[a-z]*.c"))]
STRESS = Path(__file__).with_name("lane_stress.c")

WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
SANITIZERS = {"memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], "threads": ["-fsanitize=thread"]}


def compile_with(target: Path, *options: str) -> None:
    """Compile the C modules and the program that plays the kernel."""
    found = subprocess.run(
        [program("pkg-config"), "--cflags", "--libs", "libcrypto", "libgcrypt"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    includes = [f"-I{room}" for room in ROOMS]
    done = subprocess.run(
        [program("gcc"), *WARNINGS, "-g", "-O1", *options, *includes, "-o", target, STRESS, *SOURCES,
         *shlex.split(found.stdout), "-lpthread"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=SANITIZERS)
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program, with sanitizers."""
    target = tmp_path_factory.mktemp("native") / "lane_stress"
    compile_with(target, *SANITIZERS[request.param])
    return target


@pytest.mark.parametrize(("threads", "workers"), [(1, 1), (4, 1), (8, 2), (16, 4)])
@pytest.mark.parametrize("ending", ["end", "stop"])
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
