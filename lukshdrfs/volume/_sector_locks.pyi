# What build_sector_locks.py makes.
from typing import Any

ffi: Any
lib: Any
