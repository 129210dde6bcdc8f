"""Files as tests compare them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def digest(path: Path) -> str:
    """Return what a file is and holds."""
    try:
        status = path.lstat()
    except OSError as error:
        return type(error).__name__
    if not stat.S_ISREG(status.st_mode):
        return str(stat.S_IFMT(status.st_mode))
    if not os.access(path, os.R_OK):
        return f"{status.st_size} {status.st_mtime_ns}"
    return f"{status.st_size} {hashlib.sha256(path.read_bytes()).hexdigest()}"
