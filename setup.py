"""Names the C modules' builders: cffi has no pyproject.toml form."""

from setuptools import setup

MODULES = ("sector_cipher", "sector_locks", "block_scan", "file_writes", "nbd_client", "confined_process", "lane")

setup(cffi_modules=[f"lukshdrfs/build_native.py:{name}" for name in MODULES])
