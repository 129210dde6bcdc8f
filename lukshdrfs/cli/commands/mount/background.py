"""
Going to the background only when the image can be read.

The child does all the work, prompts included, while the parent waits. The parent's exit status is the child's
result: 0 once it has read the image itself, or the child's own status if it ended before.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

from lukshdrfs.environment import close_all_but
from lukshdrfs.errors import DeviceError, LukshdrfsError

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_READY = b"R"
_PATIENCE_S = 0.5


def run_in_background(
    work: Callable[[Callable[[], None]], int], verify: Callable[[], None], keep: Iterable[int] = ()
) -> int:
    """
    Run `work` in a child process; return 0 as soon as it calls the function that it is given, and `verify` passes.

    Of the descriptors that are open here, the child has the three standard ones and those in `keep`: a daemon must
    not hold its caller's files and locks. If it ends before it is ready, return its exit status. If `verify` raises,
    the child is ended and the error goes on. If this process is interrupted meanwhile, the child is ended, and the
    status is that of a command which a signal has ended; if it is killed, the child hears of it.
    """
    receiver, sender = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with_parent(parent)
        close_all_but({0, 1, 2, sender, *keep})
        _run_child(work, sender)
    os.close(sender)
    try:
        answer = os.read(receiver, 1)
    except KeyboardInterrupt as error:
        _end(child)
        _status_of(child)
        return 128 + getattr(error, "number", signal.SIGINT)  # the child has said so
    finally:
        os.close(receiver)
    if answer != _READY:
        return _status_of(child)
    try:
        verify()
    except (LukshdrfsError, OSError) as error:
        _end(child)
        _status_of(child)
        raise DeviceError(f"the mount does not answer: {error}") from error
    except BaseException:
        _end(child)
        _status_of(child)
        raise
    return 0


def _end_with_parent(parent: int) -> None:
    """Have this process ended when its parent is, or undo that (with 0): nobody else would end a prompt."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM if parent else 0, 0, 0, 0)
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _end(child: int) -> None:
    """Let the child clean up and end. A signal from the terminal it has had already, and gets a moment to act on."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGTERM)


def _run_child(work: Callable[[Callable[[], None]], int], sender: int) -> None:
    """Never returns."""

    def ready() -> None:
        _end_with_parent(0)
        _leave_terminal()
        os.write(sender, _READY)
        os.close(sender)

    status = 1
    try:
        status = work(ready)
    except BaseException:  # a bug; nobody but us is left to tell
        log.exception("the daemon failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # not sys.exit: the parent's clean-up is not the child's to do


def _leave_terminal() -> None:
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def _status_of(child: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status >= 0:
        return status
    log.error("the daemon was ended by %s before the image was there", signal.Signals(-status).name)
    return 1
