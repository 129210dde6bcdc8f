"""The NBD client's C code by itself, under sanitizers: many threads, a server that crashes, and every byte checked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.native import SANITIZERS, compile_native
from support.tools import program

pytestmark = pytest.mark.needs("gcc", "pkg-config")

STRESS = Path(__file__).with_name("nbd_stress.c")


@pytest.fixture(scope="module", params=SANITIZERS)
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program, with sanitizers."""
    target = tmp_path_factory.mktemp("native") / "nbd_stress"
    modules = ("nbd_client", "nbd_session", "nbd_connection", "nbd_transmission", "nbd_library", "unflushed_writes",
               "confinement", "ready_memory")  # fmt: skip
    compile_native(target, STRESS, *modules,
                   options=SANITIZERS[request.param])  # fmt: skip
    return target


@pytest.mark.parametrize(("threads", "rounds"), [(1, 3000), (4, 2000), (16, 800)])
@pytest.mark.parametrize(("block", "impatient"), [(1, 0), (4096, 0), (1, 1)])
def test_every_acknowledged_byte_is_there(
    stress: Path, tmp_path: Path, threads: int, rounds: int, block: int, impatient: int
) -> None:
    """Whatever the server forgets, each reads what it wrote, and after a flush all of it is on the storage."""
    done = subprocess.run(
        [stress, tmp_path / "socket", "7", str(threads), str(rounds), str(block), str(impatient)],
        capture_output=True, text=True, timeout=120, check=False,
        env={"ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "all as expected\n"), done.stderr


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    """The strictest warnings, at the optimisation that ships."""
    package = Path(__file__).parents[2] / "lukshdrfs"
    sources = sorted(source for room in ("payload", "native") for source in (package / room).glob("[a-z]*.c"))
    for source in sources:
        done = subprocess.run(
            [program("gcc"), "-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-O2",
             f"-I{package / 'native'}", "-c",
             "-o", tmp_path / "object", source],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sanitizer", ["memory"])
def test_answers_that_are_none(sanitizer: str, tmp_path: Path) -> None:
    """Whatever a server answers, nothing is written but a command's own buffer, and nothing is believed twice."""
    target = tmp_path / "nbd_answers"
    source = Path(__file__).with_name("nbd_answers.c")
    compile_native(target, source, "nbd_transmission", options=SANITIZERS[sanitizer])
    done = subprocess.run([target, "7", "20000"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
