# What build_sector_cipher.py makes.
from typing import Any

ffi: Any
lib: Any
