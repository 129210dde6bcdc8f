"""
Memory for secrets: locked, kept out of core dumps and of children, wiped when it is let go.

A `SecretBytes` lives in pages of its own. Python objects (`bytes`, `str`) can be neither locked nor wiped,
so a secret is read into, derived into and handed on through the `view` of one of these.
"""

from __future__ import annotations

import ctypes
import hmac
import logging
import mmap
import os
import resource
from typing import NoReturn, Self

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_DUMPABLE, _PR_SET_IO_FLUSHER = 4, 57  # linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h


class SecretBytes:
    """
    A secret of fixed size in locked memory; a context manager that wipes it at the end.

    Never shows its content: not in `repr()`, not in `str()`, not in a traceback.
    """

    def __init__(self, size: int) -> None:
        """Make room for `size` bytes (0 or more), all zero."""
        self._size = size
        self._pages = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pages.madvise(mmap.MADV_DONTDUMP)
        self._view = memoryview(self._pages)
        _lock(self._view)

    @classmethod
    def copy_of(cls, data: bytes | bytearray | memoryview) -> Self:
        """Return a secret with the bytes of `data`. The caller wipes `data` if it can."""
        secret = cls(len(data))
        secret.view[:] = data
        return secret

    @classmethod
    def random(cls, size: int) -> Self:
        """Return a secret of random bytes, straight from the kernel (random(4))."""
        secret = cls(size)
        source, done = os.open("/dev/urandom", os.O_RDONLY), 0
        try:
            while done < size:
                done += os.readv(source, [secret.view[done:]])
        finally:
            os.close(source)
        return secret

    @property
    def view(self) -> memoryview:
        """The bytes, writable. Views must not outlive the secret."""
        return self._view[: self._size]

    def __len__(self) -> int:
        """Bytes of the secret."""
        return self._size

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._size} bytes>"

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self.view, other.view)

    def __copy__(self) -> NoReturn:
        """Refuse: two objects over the same pages would wipe each other."""
        raise TypeError("a secret is copied with copy_of")

    __hash__ = None  # type: ignore[assignment]  # mutable, and a hash would tell of the content

    def take(self, size: int) -> SecretBytes:
        """Return a new secret with the first `size` bytes, and wipe this one."""
        with self:
            return SecretBytes.copy_of(self.view[:size])

    def wipe(self) -> None:
        """Overwrite the bytes with zeros; the secret is empty afterwards. May be called again."""
        self._view[:] = bytes(len(self._view))
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wipe()

    def __del__(self) -> None:
        if hasattr(self, "_view"):
            self.wipe()


def _lock(view: memoryview) -> None:
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(view))) != 0:
        _warn_unlocked(os.strerror(ctypes.get_errno()))


_warned = False


def _warn_unlocked(reason: str) -> None:
    global _warned  # noqa: PLW0603 - said once a process, not once a secret
    if not _warned:
        log.warning("keys may reach swap: cannot lock memory (%s); raise 'ulimit -l'", reason)
    _warned = True


def harden_process() -> None:
    """
    Keep this process's memory to itself: no core dump, no ptrace by the same user, files for the owner only.

    Source of the calls: prctl(2) PR_SET_DUMPABLE, setrlimit(2) RLIMIT_CORE, umask(2).
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def become_io_flusher() -> bool:
    """
    Have the kernel find memory for us without waiting for writes that we ourselves have to carry out.

    A loop device on our image would wait for us for ever otherwise, when memory is short. Threads that are started
    later are the same. Takes CAP_SYS_RESOURCE; returns whether it was done. Source: prctl(2) PR_SET_IO_FLUSHER (Linux
    5.6).
    """
    return bool(_libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)


def lock_process_memory() -> bool:
    """
    Lock all of the process's memory as it is touched, where the limits allow that; return whether they did.

    The cipher contexts' key schedules live in the crypto libraries' own memory, which only this reaches.
    """
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() != 0 and limit != resource.RLIM_INFINITY:
        return False  # it might work now, and then the next thread's stack would not fit
    return bool(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
