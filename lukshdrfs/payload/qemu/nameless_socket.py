"""
A unix socket that has no name: nobody can take its place, nobody else can connect, and nothing is left of it.

It is made in a folder that only we can enter; both names go before anybody is told of it. What remains is a descriptor
of the socket's inode, and this process connects by /proc/self/fd.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

from lukshdrfs.errors import DeviceError

_BACKLOG = 16


class NamelessSocket:
    """The address of a server of ours, for this process; which server listens there can change. Close it."""

    def __init__(self) -> None:
        """Have an address, where nobody listens yet."""
        self._handle = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """The path to connect to in this process. It stays the same."""
        return f"/proc/self/fd/{self._handle}"

    def listen(self) -> socket.socket:
        """
        Return a new listening socket, which this address leads to from now on.

        Raises DeviceError if there is no folder to make one in.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made = _bind(listener)
            os.dup2(made, self._handle, inheritable=False)
            os.close(made)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise DeviceError(f"a socket in {_base()}: {os.strerror(error.errno or 0)}") from None
        except BaseException:
            listener.close()
            raise
        return listener

    def close(self) -> None:
        """Let go of it. May be called again."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def _base() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return runtime if Path(runtime).is_dir() and runtime else tempfile.gettempdir()


def _bind(listener: socket.socket) -> int:
    """Bind a socket and take its name away; return a descriptor of its inode. Raises OSError, DeviceError."""
    with contextlib.ExitStack() as stack:
        base = os.open(_base(), os.O_DIRECTORY | os.O_PATH | os.O_CLOEXEC)
        stack.callback(os.close, base)
        name = f"lukshdrfs-{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=base)
        stack.callback(os.rmdir, name, dir_fd=base)
        folder = os.open(name, os.O_DIRECTORY | os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
        stack.callback(os.close, folder)
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise DeviceError(f"the folder {_base()} is not one for temporary files: others change what is in it")
        listener.bind(f"/proc/self/fd/{folder}/socket")
        stack.callback(os.unlink, "socket", dir_fd=folder)
        handle = os.open("socket", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        if not stat.S_ISSOCK(os.fstat(handle).st_mode):
            os.close(handle)
            raise DeviceError(f"{_base()}: somebody has changed a folder that only we can enter")
        return handle
