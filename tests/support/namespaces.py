"""Mount namespaces of a test's own."""

from __future__ import annotations

LEAVE_FOREIGN_MOUNTS = (
    "findmnt --noheadings --raw --output TARGET --types fuse.lukshdrfs | "
    'while read -r other; do umount --lazy "$(printf %b "$other")" || :; done'
)
"""
For sh, first thing in a new namespace whose mounts are private.

It has copies of all mounts, those of other tests, too, which it would keep when they are unmounted elsewhere. `findmnt`
says odd characters in hexadecimal, as printf takes them.
"""
