# What build_lane.py makes.
from typing import Any

ffi: Any
lib: Any
