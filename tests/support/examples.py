"""The examples, run as they stand, with the installed program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.mounts import LUKSHDRFS
from support.tools import SYSTEM_PATH

EXAMPLES = Path(__file__).parents[2] / "examples"


def start_example(
    name: str, *arguments: str, folder: Path, command: Sequence[str | Path] = ()
) -> subprocess.Popen[str]:
    """Start an example without a terminal, in a session of its own; all that it makes is in `folder`."""
    return subprocess.Popen(
        [*command, "bash", EXAMPLES / name, "--installed", *arguments],
        env={**os.environ, "PATH": f"{LUKSHDRFS.parent}{os.pathsep}{SYSTEM_PATH}", "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def end_example(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End an example that runs, with time for its own clean-up, and return what it said."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            return process.communicate(timeout=30)
    return process.communicate(timeout=30)


def run_example(
    name: str, *arguments: str, folder: Path, command: Sequence[str | Path] = (), timeout: float = 110
) -> tuple[str, str]:
    """Run an example to its end, and return its two outputs; nothing may be left in its folder."""
    with start_example(name, *arguments, folder=folder, command=command) as process:
        try:
            shown, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} took more than {timeout:.0f} s: {end_example(process)}")
        except BaseException:
            end_example(process)
            raise
    assert process.returncode == 0, shown + errors
    assert os.listdir(folder) == []
    return shown, errors
