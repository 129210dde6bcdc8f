"""An NBD server of our own that keeps account of what it is asked, and that can be made to answer anything."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

OPTION_MAGIC, OPTION_REPLY = 0x49484156454F5054, 0x3E889045565A9
GO, ACK, INFO, UNSUPPORTED = 7, 1, 3, 0x80000001
HAS_FLAGS, SEND_FLUSH, SEND_FUA, MULTI_CONN = 1, 4, 8, 256
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = range(4)

Write = tuple[int, bytes]


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError
        data += piece
    return bytes(data)


class NbdServer:
    """
    Serves `size` bytes of memory on a unix socket; what is written and flushed is in `events`, in that order.

    `reply`, if it is set, makes the bytes that answer a request: it gets the kind, the cookie and the right answer.
    """

    def __init__(self, place: Path, size: int, flags: int = HAS_FLAGS | SEND_FLUSH | SEND_FUA | MULTI_CONN) -> None:
        self.content = bytearray(size)
        self.events: list[Write | None] = []
        """Writes, and None for a flush."""
        self.reply: Callable[[int, int, bytes], bytes] | None = None
        self._flags = flags
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._shake_hands(connection)
            while self._answer(connection):
                pass
            connection.shutdown(socket.SHUT_RDWR)

    def _shake_hands(self, connection: socket.socket) -> None:
        connection.sendall(b"NBDMAGIC" + struct.pack(">QH", OPTION_MAGIC, 3))
        _receive(connection, 4)
        while True:
            _, option, length = struct.unpack(">QII", _receive(connection, 16))
            _receive(connection, length)
            if option != GO:
                connection.sendall(struct.pack(">QIII", OPTION_REPLY, option, UNSUPPORTED, 0))
                continue
            info = struct.pack(">HQH", 0, len(self.content), self._flags)
            connection.sendall(struct.pack(">QIII", OPTION_REPLY, option, INFO, len(info)) + info)
            connection.sendall(struct.pack(">QIII", OPTION_REPLY, option, ACK, 0))
            return

    def _answer(self, connection: socket.socket) -> bool:
        _, _, kind, cookie, offset, length = REQUEST.unpack(_receive(connection, REQUEST.size))
        if kind == DISCONNECT:
            return False
        data = _receive(connection, length) if kind == WRITE else b""
        with self._lock:
            if kind == WRITE:
                self.content[offset : offset + length] = data
                self.events.append((offset, data))
            elif kind == FLUSH:
                self.events.append(None)
            else:
                data = bytes(self.content[offset : offset + length])
        answer = REPLY.pack(REPLY_MAGIC, 0, cookie) + (data if kind == READ else b"")
        connection.sendall(self.reply(kind, cookie, answer) if self.reply else answer)
        return True
