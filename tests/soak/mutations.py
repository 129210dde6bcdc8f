"""
Change the program at random, a little at a time, and see whether the fast tests notice.

    unshare -m -p --fork --mount-proc python tests/soak/mutations.py FOLDER [--sample 300] [--seed 1] [PATTERN ...]

mutmut makes the changes (pyproject.toml says of which files) and runs the tests that reach each one. FOLDER gets a copy
of the checkout with the compiled modules of the installed package; when it is used again, the tests are brought up to
date. A PATTERN is a module's, "lukshdrfs.luks.*" for instance. Prints the score and what survived; what a survivor is,
`mutmut show NAME` says in FOLDER. It takes mutmut beside this Python. In namespaces of its own, because the tests look
for what they leave behind among all processes, and that takes long where there are many.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lukshdrfs

ROOT = Path(__file__).parents[2]
MUTMUT = Path(sys.executable).with_name("mutmut")
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "mutants", "*.egg-info", ".*_cache", "__pycache__")
SURVIVED, NO_TESTS = 0, 33
"""What mutmut notes as the exit status of a change that no test noticed, or that none reached."""


def copy_checkout(folder: Path) -> None:
    """Make a copy that runs from its sources, compiled modules included."""
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    installed = Path(lukshdrfs.__file__).parent
    for module in installed.rglob("*.so"):
        shutil.copy(module, folder / "lukshdrfs" / module.relative_to(installed))


def renew_tests(folder: Path) -> None:
    """Take the tests as they are now; mutmut finds out which changes the new ones reach."""
    for copy in (folder / "tests", folder / "mutants" / "tests"):
        shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=LEFT_OUT)


def mutmut(folder: Path, processes: int, *names: str) -> None:
    """Run it; what it prints is for people."""
    subprocess.run([MUTMUT, "run", "--max-children", str(processes), *names], cwd=folder, check=False)


def outcomes(folder: Path) -> dict[str, int | None]:
    """Return what became of each change; None: it was not tried."""
    found: dict[str, int | None] = {}
    for notes in (folder / "mutants").rglob("*.meta"):
        found |= json.loads(notes.read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pattern", nargs="*", default=["*"])
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_intermixed_args()
    if not arguments.folder.exists():
        copy_checkout(arguments.folder)
        # makes all the others, too
        mutmut(arguments.folder, arguments.processes, "lukshdrfs.sectors.x_round_up__mutmut_1")
    else:
        renew_tests(arguments.folder)
    names = sorted(
        name
        for name in outcomes(arguments.folder)
        if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.pattern)
    )
    chosen = random.Random(arguments.seed).sample(names, min(arguments.sample, len(names)))
    mutmut(arguments.folder, arguments.processes, *chosen)
    found = {name: outcome for name, outcome in outcomes(arguments.folder).items() if name in set(chosen)}
    counts = Counter(found.values())
    survivors = sorted(name for name, outcome in found.items() if outcome in {SURVIVED, NO_TESTS})
    tried = len(found) - counts[None]
    print("\n".join(survivors))
    print(f"{tried} of {len(names)} tried, {tried - len(survivors)} noticed, {counts[NO_TESTS]} reached by no test")


if __name__ == "__main__":
    main()
