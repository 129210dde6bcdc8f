"""Fixtures for every test: volumes to work on, and a guard that nothing is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from support import devices, mounts, processes
from support.cryptsetup import XTS_4096, Format, LuksFiles, make_header
from support.mounts import Mounted
from support.tools import require
from support.volumes import MIB, MakeVolume, new_files
from support.waiting import wait_until

# the Pythons that tests start must take the installed package, not the sources that the tests run beside
os.environ["PYTHONSAFEPATH"] = "1"

# Whoever runs the tests in the background may ignore the terminal's interrupt, and so would every program they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Other users have a part in some tests; where this user's files are for itself alone, they would see too little.
os.umask(0o022)

# a deadline measures the machine, not the code
hypothesis.settings.register_profile("lukshdrfs", deadline=None)
hypothesis.settings.load_profile("lukshdrfs")

PATIENCE_FOR_LEFTOVERS = 10.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that is marked so once for each data path: the fast lane's, and Python's, its obvious twin."""
    if metafunc.definition.get_closest_marker("each_data_path"):
        metafunc.fixturenames.insert(0, "over_data_path")
        metafunc.parametrize("over_data_path", ["native", "python"], indirect=True)


@pytest.fixture
def over_data_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have all mounts of a test take one data path."""
    with mounts.all_over(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """Honour the markers `needs` and `root`."""
    needs = [need for marker in request.node.iter_markers("needs") for need in marker.args]
    if request.node.get_closest_marker("root") is not None:
        needs.append("root")
    require(needs)


@dataclasses.dataclass(frozen=True)
class Leftovers:
    """What a test can leave behind below pytest's folder."""

    loops: frozenset[str]
    mounts: frozenset[Path]
    daemons: frozenset[int]

    @classmethod
    def below(cls, folder: Path) -> Leftovers:
        """Look for what is there now."""
        return cls(
            frozenset(devices.loop_devices(folder)),
            frozenset(mounts.fuse_mounts(folder)),
            frozenset(processes.daemons(folder)),
        )

    def beyond(self, before: Leftovers) -> Leftovers:
        """Return what was not there before."""
        return Leftovers(self.loops - before.loops, self.mounts - before.mounts, self.daemons - before.daemons)

    def clean_up(self) -> None:
        """Remove it, by force."""
        for mountpoint in self.mounts:
            with contextlib.suppress(subprocess.CalledProcessError):
                mounts.fusermount(mountpoint, lazily=True)
        for pid in self.daemons:
            processes.kill(pid)
        # last, for a mount may have been of such a device
        for device in self.loops:
            with contextlib.suppress(subprocess.CalledProcessError, AssertionError):
                devices.detach(device)

    def __bool__(self) -> bool:
        return bool(self.loops or self.mounts or self.daemons)


def _fail_on_leftovers(folder: Path, before: Leftovers) -> None:
    # a daemon that has been unmounted may still be flushing: that is no leak
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not Leftovers.below(folder).beyond(before), "all is gone", timeout=PATIENCE_FOR_LEFTOVERS)
    left = Leftovers.below(folder).beyond(before)
    if left:
        left.clean_up()
        pytest.fail(f"left behind: {left}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run when a fixture of wide scope left something behind."""
    folder = tmp_path_factory.getbasetemp()
    before = Leftovers.below(folder)
    yield
    _fail_on_leftovers(folder, before)


@pytest.fixture(autouse=True)
def _nothing_outlives_the_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves a mount, a loop device or a daemon behind, and remove it."""
    folder = tmp_path_factory.getbasetemp()
    before = Leftovers.below(folder)
    yield
    _fail_on_leftovers(folder, before)


def _manners() -> tuple[int, object]:
    umask = os.umask(0)
    os.umask(umask)
    return umask, signal.getsignal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def _process_stays_as_it_is() -> Iterator[None]:
    """Fail a test that changes what later tests, and the programs they start, inherit from this process."""
    before = _manners()
    yield
    assert _manners() == before


@pytest.fixture(scope="session")
def _headers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Format, int], LuksFiles]:
    """Headers that cryptsetup made: one of each format serves all tests."""
    return {}


@pytest.fixture
def make_volume(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, _headers: dict[tuple[Format, int], LuksFiles]
) -> MakeVolume:
    """Return a function that makes volumes: cryptsetup's header, and a payload of zero bytes."""
    require(["cryptsetup"])
    numbers = itertools.count()

    def make(layout: Format = XTS_4096, size: int = 4 * MIB) -> LuksFiles:
        master = _headers.get((layout, size))
        if master is None:
            master = new_files(tmp_path_factory.mktemp("header"), size)
            make_header(master, layout)
            _headers[layout, size] = master
        folder = tmp_path / f"volume{next(numbers)}"
        folder.mkdir()
        files = new_files(folder, size)
        shutil.copy(master.header, files.header)  # with its mode, 0600
        return files

    return make


@pytest.fixture
def volume(make_volume: MakeVolume) -> LuksFiles:
    """Return a volume of 4 MiB with 4096-byte sectors, so that most writes are a part of a sector."""
    return make_volume()


@pytest.fixture
def mounted(volume: LuksFiles) -> Iterator[Mounted]:
    """Mount `volume`, read-write."""
    require(["fuse"])
    with Mounted(volume.payload, header=volume.header, key_file=volume.key_file) as mount:
        yield mount
