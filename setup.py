"""Names the C module's builder: cffi has no pyproject.toml form."""

from setuptools import setup

setup(cffi_modules=["lukshdrfs/cipher/build_sector_cipher.py:ffibuilder"])
