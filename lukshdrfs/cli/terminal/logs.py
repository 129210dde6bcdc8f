"""Where messages go: the terminal in the foreground, the system's log in the background. Never secrets."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path

SYSLOG_SOCKET = "/dev/log"

_root = logging.getLogger("lukshdrfs")


def printable(text: str) -> str:
    """Return a text in one line, with bytes that are no text, and what a terminal would act upon, made visible."""
    return "".join(char if char.isprintable() else _visible(char) for char in text)


def _visible(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file's name (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return `lukshdrfs: message`, with the level if it is no error; a traceback only for a bug."""
        level = "" if record.levelno >= logging.ERROR else f"{record.levelname.lower()}: "
        text = f"lukshdrfs: {level}{printable(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def to_terminal(verbosity: int) -> None:
    """Log to standard error; `verbosity` is 0 for warnings, more for more, less for errors alone."""
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    _root.handlers = [handler]
    _root.setLevel(levels.get(verbosity, logging.DEBUG))
    _root.propagate = False


def to_syslog() -> None:
    """Log to syslog or the journal, if there is one."""
    _root.handlers = [logging.NullHandler()]
    if Path(SYSLOG_SOCKET).exists():
        try:
            handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET, facility="daemon")
        except OSError:
            return
        handler.setFormatter(_OneLine())
        _root.handlers = [handler]
