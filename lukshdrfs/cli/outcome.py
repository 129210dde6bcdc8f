"""The one place where an error becomes a line and an exit status."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

from lukshdrfs.errors import DeviceError, LukshdrfsError, OutOfMemory

log = logging.getLogger(__name__)


class EndedBySignal(KeyboardInterrupt):
    """Another signal than Ctrl-C's asks us to end; what was begun is undone in the same way."""

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__()
        self.number = number


def exit_status(work: Callable[[], int]) -> int:
    """Run something; return its exit status, or that of the error that ended it, which is logged in one line."""
    try:
        return work()
    except LukshdrfsError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("out of memory", OutOfMemory.exit_code)
    except KeyboardInterrupt as error:
        # as a shell has it for a command that a signal has ended
        return _fail("interrupted", 128 + getattr(error, "number", signal.SIGINT))
    except BrokenPipeError:
        return 1  # whoever read our output has enough of it
    except OSError as error:  # of a file or device that has a name, it is as if we had opened it
        status = DeviceError.exit_code if error.filename else 1
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", status)


def _fail(message: str, status: int) -> int:
    log.error("%s", message)
    return status
