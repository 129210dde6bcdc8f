"""What a request is answered with where something went wrong."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from lukshdrfs.errors import LukshdrfsError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def answers_errno(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """
    Let no exception but FUSEError out of a request handler.

    pyfuse3 answers only that one; any other ends its main loop, and so the mount.
    """

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except (LukshdrfsError, OSError) as error:
            log.error("%s", error)  # noqa: TRY400 - an error of the storage, not of the program
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except MemoryError as error:
            raise pyfuse3.FUSEError(errno.ENOMEM) from error
        except Exception as error:  # a bug: say so loudly, keep the mount
            log.exception("%s failed", handler.__qualname__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answer


def refuse(code: int) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a handler that answers every request with one errno."""

    async def refused(*_args: object) -> None:
        await trio.lowlevel.checkpoint()
        raise pyfuse3.FUSEError(code)

    return refused
