"""The command line: arguments in, library calls, messages and exit codes out. The contract is in docs/cli.md."""

from lukshdrfs.cli.main import main
from lukshdrfs.cli.mount_helpers import mount_helper, umount_helper

__all__ = [
    "main",
    "mount_helper",
    "umount_helper",
]
