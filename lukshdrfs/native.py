"""The compiled module, which the way of the data goes through. It is named in this one place."""

from lukshdrfs._native import ffi, lib

__all__ = ["ffi", "lib"]
