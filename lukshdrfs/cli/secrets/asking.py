"""How a question for a passphrase is asked: on the terminal, or through systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from lukshdrfs.cli.secrets.reading import read_line
from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.environment import for_children
from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.secret import SecretBytes

_ASK_PASSWORD = "systemd-ask-password"  # noqa: S105 - a program


_SYSTEMD_RUNS = Path("/run/systemd/system")


_QUESTIONS = Path("/run/systemd/ask-password")


def agent_is_there() -> bool:
    """
    Whether a passphrase is to be had from systemd's agents: it runs this machine, and we have nobody to ask ourselves.

    Sources: sd_booted(3); systemd-ask-password(1).
    """
    return (
        nothing_comes_in()
        and _SYSTEMD_RUNS.exists()
        and shutil.which(_ASK_PASSWORD) is not None
        and os.access(_QUESTIONS, os.W_OK)
    )


def nothing_comes_in() -> bool:
    """Whether standard input is /dev/null, as a service has it."""
    try:
        return os.path.samestat(os.fstat(0), os.stat(os.devnull))  # noqa: PTH116
    except OSError:
        return False


NO_ANSWER = f"{_ASK_PASSWORD} got no answer; name the key with --key-file"


def ask_agent(prompt: str) -> SecretBytes:
    """Ask by systemd-ask-password: whoever answers, at boot, on the desktop or on the wall, we get one line."""
    command = [_ASK_PASSWORD, "--no-tty", "--icon=drive-harddisk", "--id=lukshdrfs", printable(prompt).strip(" :")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=for_children()) as agent:
        assert agent.stdout is not None
        try:
            secret = read_line(f"fd:{agent.stdout.fileno()}", _ASK_PASSWORD, described=_ASK_PASSWORD)
        except UsageError:
            if agent.wait() != 0:  # nothing came, for nobody answered
                raise DeviceError(NO_ANSWER) from None
            raise
    if agent.returncode != 0:
        secret.wipe()
        raise DeviceError(NO_ANSWER)
    return secret
