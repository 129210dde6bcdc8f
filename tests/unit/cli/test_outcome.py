"""How an error becomes a line and an exit status."""

from __future__ import annotations

import errno
import logging

import pytest

from lukshdrfs.cli.outcome import exit_status


def test_a_place_that_may_not_be_looked_at_is_a_missing_file(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever meets it, and however: it is named, and the exit status is that of a file that is not there."""

    def work() -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/root/header")

    with caplog.at_level(logging.ERROR):
        assert exit_status(work) == 4
    assert caplog.messages == ["/root/header: Permission denied"]


def test_what_has_no_name_is_an_error_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is made up."""

    def work() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with caplog.at_level(logging.ERROR):
        assert exit_status(work) == 1
    assert caplog.messages == ["system: Too many open files"]
