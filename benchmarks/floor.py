"""
Mounts a plain file the way a volume is mounted, without a cipher: the floor that the cipher's cost is measured from.

    floor.py FILE MOUNTPOINT    runs until MOUNTPOINT is unmounted
"""

from __future__ import annotations

import sys
from pathlib import Path

from lukshdrfs.fuse import MountOptions, serve
from lukshdrfs.payload import FilePayload
from lukshdrfs.volume import Extent, Volume


def main() -> int:
    """Serve the file by the fast lane."""
    path, mountpoint = (str(Path(word).resolve()) for word in sys.argv[1:3])
    payload = FilePayload.open(path, read_only=False)
    with Volume(payload, [Extent(0, payload.size, 0, 4096, 0, None)], {"type": "none"}) as volume:
        options = MountOptions(mountpoint=mountpoint, source=path, data_path="native")
        serve(volume, options, lambda: None, end_on_hangup=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
