"""Headers where they lie: read once, edited in place, made whole, locked as cryptsetup locks them."""

from lukshdrfs.headers.file import HeaderFile, locked_for_writing, open_header
from lukshdrfs.headers.new_file import create_header_file, replace_header_file
from lukshdrfs.headers.pin import HeaderPin
from lukshdrfs.headers.presence import HeaderPresence
from lukshdrfs.headers.repair import repair_header
from lukshdrfs.headers.source import parse_from, read_header, source_descriptor

__all__ = [
    "HeaderFile",
    "HeaderPin",
    "HeaderPresence",
    "create_header_file",
    "locked_for_writing",
    "open_header",
    "parse_from",
    "read_header",
    "repair_header",
    "replace_header_file",
    "source_descriptor",
]
