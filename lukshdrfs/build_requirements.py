"""
What a build needs and is not there, told all at once, before anything is built.

setup.py runs this when the package's metadata is asked for, which pip does before it builds pyfuse3: what that needs is
looked for, too. Nothing but Python's standard library is used, and nothing of this package.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

BUILDING = {"bdist_wheel", "build", "build_ext", "develop", "dist_info", "editable_wheel", "install"}
"""The commands of setuptools that build, or come before a build; making a source distribution is none."""

_MANAGERS = {
    "apt-get": "apt-get install",
    "dnf": "dnf install",
    "pacman": "pacman -S",
    "zypper": "zypper install",
}
_PACKAGES = {
    "a C compiler": ("gcc", "gcc", "gcc", "gcc"),
    "the C library's headers": ("libc6-dev", "glibc-devel", "glibc", "glibc-devel"),
    "Python's headers": ("python3-dev", "python3-devel", "python", "python3-devel"),
    "pkg-config": ("pkg-config", "pkgconf-pkg-config", "pkgconf", "pkg-config"),
    "libfuse 3 (fuse3)": ("libfuse3-dev", "fuse3-devel", "fuse3", "fuse3-devel"),
    "OpenSSL's libcrypto": ("libssl-dev", "openssl-devel", "openssl", "libopenssl-devel"),
    "libgcrypt": ("libgcrypt20-dev", "libgcrypt-devel", "libgcrypt", "libgcrypt-devel"),
}
"""What is needed, and its package for each of the package managers."""

_LIBRARIES = {
    "libfuse 3 (fuse3)": ("fuse3", "fuse3/fuse.h"),
    "OpenSSL's libcrypto": ("libcrypto", "openssl/evp.h"),
    "libgcrypt": ("libgcrypt", "gcrypt.h"),
}
"""Each library's name for pkg-config, and a header, by which it is looked for where there is no pkg-config."""


def check(words: list[str]) -> None:
    """Raise SystemExit, with one message, if the commands in `words` build and something for that is missing."""
    missing = [] if BUILDING.isdisjoint(words) else list(find_missing())
    if missing:
        raise SystemExit(f"lukshdrfs cannot be built: {', '.join(missing)} missing; {_way_out(missing)}")


def find_missing() -> Iterator[str]:
    """Yield what is missing, in the words of the message."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not compiler or shutil.which(compiler[0]) is None:
        yield "a C compiler"
    if not _has_header("stdio.h"):
        yield "the C library's headers"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        yield "Python's headers"
    pkg_config = shutil.which("pkg-config")
    if pkg_config is None:
        yield "pkg-config"
    for what, (name, header) in _LIBRARIES.items():
        if name == "fuse3" and _is_installed("pyfuse3"):
            continue  # nobody but pyfuse3 is built with it
        there = _has_header(header) if pkg_config is None else _knows(pkg_config, name)
        if not there:
            yield what


def _knows(pkg_config: str, name: str) -> bool:
    return subprocess.run([pkg_config, "--exists", name], capture_output=True, check=False).returncode == 0


def _has_header(name: str) -> bool:
    folders = ["/usr/include", "/usr/local/include", *os.environ.get("CPATH", "").split(os.pathsep)]
    if triplet := sysconfig.get_config_var("MULTIARCH"):
        folders.append(f"/usr/include/{triplet}")
    return any(folder and Path(folder, name).exists() for folder in folders)


def _is_installed(package: str) -> bool:
    """Whether the Python that we build for has a package: where pip builds, it is not on the path."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), "/usr/lib/python3/dist-packages"}
    return any(Path(folder, package).exists() for folder in folders)


def _way_out(missing: list[str]) -> str:
    managers = list(_MANAGERS)
    found = next((manager for manager in managers if shutil.which(manager, path=f"{os.defpath}:/usr/bin")), managers[0])
    packages = " ".join(dict.fromkeys(_PACKAGES[what][managers.index(found)] for what in missing))
    return f"install with: {_MANAGERS[found]} {packages}"
