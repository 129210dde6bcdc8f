"""Names the C modules' builders: cffi has no pyproject.toml form. Says before what is missing for a build."""

import runpy
import sys
from pathlib import Path

from setuptools import setup

MODULES = ("native", "block_scan")

requirements = runpy.run_path(str(Path(__file__).parent / "lukshdrfs" / "build_requirements.py"))
requirements["check"](sys.argv)
# the builders ask pkg-config, which what only describes or packs up the sources can do without
builders = [] if requirements["BUILDING"].isdisjoint(sys.argv) else [f"lukshdrfs/build_native.py:{m}" for m in MODULES]
setup(cffi_modules=builders)
