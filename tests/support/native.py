"""C code of ours in a program of its own, with sanitizers."""

from __future__ import annotations

import ast
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from support.tools import program

PACKAGE = Path(__file__).parents[2] / "lukshdrfs"
_BUILD = ast.parse((PACKAGE / "build_native.py").read_text(encoding="utf-8"))
NATIVE: dict[str, tuple[str, ...]] = next(
    ast.literal_eval(one.value)
    for one in _BUILD.body
    if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name) and one.targets[0].id == "NATIVE"
)
"""The C files by room: what is built, as the build's own list says it."""
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
SANITIZERS = MappingProxyType({
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "threads": ("-fsanitize=thread",),
})  # fmt: skip


def compile_native(target: Path, source: Path, *modules: str, options: Sequence[str] = ()) -> None:
    """Compile a program together with C files of ours, which are named by room and name: `volume/sector_locks`."""
    libraries = subprocess.run(
        [program("pkg-config"), "--cflags", "--libs", "libcrypto", "libgcrypt"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    files = [PACKAGE / f"{module}.c" for module in modules]
    done = subprocess.run(
        [program("gcc"), *WARNINGS, "-g", "-O1", *options, f"-I{PACKAGE}", "-o", target, source,
         *files, *shlex.split(libraries), "-lpthread", "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
