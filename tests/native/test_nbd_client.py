"""The NBD client's C code by itself, under sanitizers: many threads, a server that crashes, and every byte checked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.native import NATIVE, SANITIZERS, compile_native

pytestmark = pytest.mark.needs("gcc", "pkg-config")

STRESS = Path(__file__).with_name("nbd_stress.c")


@pytest.fixture(scope="module", params=SANITIZERS)
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program, with sanitizers."""
    target = tmp_path_factory.mktemp("native") / "nbd_stress"
    modules = [f"{room}/{name}" for room in ("threads", "payload/nbd") for name in NATIVE[room]]
    compile_native(target, STRESS, *modules, options=SANITIZERS[request.param])
    return target


@pytest.mark.parametrize(("threads", "rounds"), [(1, 1500), (4, 1000), (16, 400)])
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


@pytest.mark.parametrize("sanitizer", ["memory"])
def test_answers_that_are_none(sanitizer: str, tmp_path: Path) -> None:
    """Whatever a server answers, nothing is written but a command's own buffer, and nothing is believed twice."""
    target = tmp_path / "nbd_answers"
    source = Path(__file__).with_name("nbd_answers.c")
    compile_native(target, source, "payload/nbd/transmission", options=SANITIZERS[sanitizer])
    done = subprocess.run([target, "7", "20000"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
