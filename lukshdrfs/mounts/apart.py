"""
What may hang for good, done by a process of its own that can be left behind.

A request to a file system whose daemon does not answer cannot be taken back, not even by SIGKILL, once the daemon has
read it. Other files of /proc wait for the memory of a process that itself waits for such a file system. Whoever has to
go on whatever happens asks through one of these processes, and stops listening when its time is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from lukshdrfs.environment import close_all_but

_ENOUGH_BYTES = 1 << 16


class Apart:
    """
    A process that does some work and says what comes of it, piece by piece.

    It has none of the caller's descriptors, and nobody waits for its end.
    """

    def __init__(self, work: Callable[[], Iterable[Any]], owner: tuple[int, int] | None = None) -> None:
        """
        Start the work: each value that it yields has to be one of JSON's.

        With `owner`, a user's and a group's number, it is done as that user, who has no part in what is ours.
        Only for processes that have no secrets and no other threads: the new one has a copy of all their memory.
        """
        self.answers: list[Any] = []
        """What has been said so far."""
        self.error: OSError | None = None
        """What ended the work early."""
        self.ended = False
        """Whether all has been said."""
        self._received = b""
        self._descriptor, sender = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            _work(work, sender, owner)
        os.close(sender)

    def fileno(self) -> int:
        """Return the descriptor to poll for more."""
        return self._descriptor

    def receive(self) -> None:
        """Take in what has been said since the last time; to be called when there is something."""
        data = os.read(self._descriptor, _ENOUGH_BYTES)
        self._received += data
        *whole, self._received = self._received.split(b"\n")
        for line in whole:
            message = json.loads(line)
            if "errno" in message:
                self.error = OSError(message["errno"], os.strerror(message["errno"]))
            else:
                self.answers.append(message["answer"])
        if not data:
            self.ended = True

    def leave(self) -> None:
        """Have it end, and do not wait until it has."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        with contextlib.suppress(OSError):
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0 if self.ended else os.WNOHANG)


def wait_apart(parts: Iterable[Apart], limit_s: float) -> None:
    """Wait until all have ended, or so many seconds; leave those that have not."""
    waiting, deadline = list(parts), time.monotonic() + limit_s
    try:
        while waiting and (left := deadline - time.monotonic()) > 0:
            for part in select.select(waiting, [], [], left)[0]:
                part.receive()
            waiting = [part for part in waiting if not part.ended]
    finally:
        for part in parts:
            part.leave()


def ask_apart(work: Callable[[], Iterable[Any]], limit_s: float, owner: tuple[int, int] | None = None) -> Apart:
    """Do one piece of work; return it with what it has said within so many seconds."""
    part = Apart(work, owner)
    wait_apart([part], limit_s)
    return part


def _work(work: Callable[[], Iterable[Any]], sender: int, owner: tuple[int, int] | None) -> None:
    """Never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # whoever reads our caller's output waits for everybody who can write to it
        close_all_but({0, 1, 2, sender})
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(null, standard)
        if owner is not None:
            _become(*owner)
        for answer in work():
            os.write(sender, json.dumps({"answer": answer}).encode() + b"\n")
    except OSError as error:
        os.write(sender, json.dumps({"errno": error.errno or 0}).encode() + b"\n")
    finally:
        os._exit(0)


def _become(user: int, group: int) -> None:
    if (user, group) == (os.geteuid(), os.getegid()):
        return
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
