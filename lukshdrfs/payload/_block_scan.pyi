# What build_block_scan.py makes.
from typing import Any

ffi: Any
lib: Any
