"""The package as its users get it: an sdist, a wheel from it, and a clean environment that has no sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.golden import DATA

import lukshdrfs as package

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.needs("git")


def run(*command: str | Path, folder: Path) -> str:
    """Run a program outside the project, as somebody else would: no PYTHONPATH, an empty HOME."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "XDG_CONFIG"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an sdist of what git tracks, and a wheel that was built from it."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", source, folder=folder)
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


def test_both_have_what_it_takes(distributions: tuple[Path, Path]) -> None:
    """The sdist has the C sources and the licence; the wheel has compiled modules, types, manual pages, no tests."""
    sdist, wheel = distributions
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"lukshdrfs/fuse/lane/lane.c", "lukshdrfs/fuse/lane/lane.h", "LICENSE", "README.md", "setup.py"} <= names
    with zipfile.ZipFile(wheel) as contents:
        found = contents.namelist()
    assert any(name.startswith("lukshdrfs/_native.") and name.endswith(".so") for name in found)
    assert "lukshdrfs/py.typed" in found
    assert any(name.endswith("share/man/man1/lukshdrfs.1") for name in found)
    assert any(name.endswith("share/fish/vendor_completions.d/lukshdrfs.fish") for name in found)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in found)
    assert package.__version__ in wheel.name


def test_clean_environment(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed from the wheel alone, the program runs by its name and by `python -m`, and its helpers are there."""
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, folder=tmp_path)
    bin_ = environment / "bin"
    run(bin_ / "pip", "install", "--quiet", distributions[1], folder=tmp_path)
    version = f"lukshdrfs {package.__version__}\n"
    assert run(bin_ / "lukshdrfs", "--version", folder=tmp_path) == version
    assert run(bin_ / "python", "-m", "lukshdrfs", "--version", folder=tmp_path) == version
    header = tmp_path / "header.img"
    header.write_bytes(subprocess.run(
        ["gzip", "-dc", DATA / "luks2-pbkdf2-5000.header.img.gz"], capture_output=True, check=True
    ).stdout)  # fmt: skip
    assert '"luks2"' in run(bin_ / "lukshdrfs", "info", "--json", header, folder=tmp_path)
    assert (bin_ / "mount.lukshdrfs").exists()
    assert (bin_ / "umount.lukshdrfs").exists()
    where = run(bin_ / "python", "-c", "import lukshdrfs; print(lukshdrfs.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
