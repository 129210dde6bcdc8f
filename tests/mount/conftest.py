"""Mounts are tested over both data paths: the fast lane, and Python as its obviously right twin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import mounts

TWICE = {"test_attributes", "test_block_users", "test_concurrency", "test_io", "test_life"}
"""The modules in which it may matter who serves reads and writes."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of these modules once for each data path."""
    if metafunc.module.__name__.rpartition(".")[2] in TWICE and "data_path" not in metafunc.fixturenames:
        metafunc.fixturenames.insert(0, "over_data_path")
        metafunc.parametrize("over_data_path", ["native", "python"], indirect=True)


@pytest.fixture
def over_data_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have all mounts of a test take one data path."""
    with mounts.all_over(request.param):
        yield request.param
