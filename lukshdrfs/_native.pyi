# What build_native.py makes.
from typing import Any

ffi: Any
lib: Any
