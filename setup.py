"""Names the C modules' builders: cffi has no pyproject.toml form."""

from setuptools import setup

setup(
    cffi_modules=[
        "lukshdrfs/cipher/build_sector_cipher.py:ffibuilder",
        "lukshdrfs/payload/build_block_scan.py:ffibuilder",
        "lukshdrfs/volume/build_sector_locks.py:ffibuilder",
        "lukshdrfs/fuse/build_lane.py:ffibuilder",
    ]
)
