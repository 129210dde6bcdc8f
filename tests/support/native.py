"""C code of ours in a program of its own, with sanitizers."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from support.tools import program

PACKAGE = Path(__file__).parents[2] / "lukshdrfs"
ROOMS = [PACKAGE / room for room in ("cipher", "volume", "fuse", "payload", "native")]
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
SANITIZERS = MappingProxyType({
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "threads": ("-fsanitize=thread",),
})  # fmt: skip


def compile_native(target: Path, source: Path, *modules: str, options: Sequence[str] = ()) -> None:
    """Compile a program together with C modules, which are named without their rooms."""
    libraries = subprocess.run(
        [program("pkg-config"), "--cflags", "--libs", "libcrypto", "libgcrypt"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    files = [next(file for room in ROOMS if (file := room / f"{module}.c").exists()) for module in modules]
    done = subprocess.run(
        [program("gcc"), *WARNINGS, "-g", "-O1", *options, *(f"-I{room}" for room in ROOMS), "-o", target, source,
         *files, *shlex.split(libraries), "-lpthread", "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
