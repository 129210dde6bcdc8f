"""What a person at a terminal is told after `mount`: how to go on, and how to undo it."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass

from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.errors import LukshdrfsError
from lukshdrfs.fuse import MountOptions
from lukshdrfs.mounts import PROPERTY_PREFIX
from lukshdrfs.recognition.content import NOTHING, Content, Read, content_of
from lukshdrfs.volume import Volume

_USUAL_SECTOR = 512
"""Bytes that a loop device's sectors have if nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What the lines depend on."""

    options: MountOptions
    read_only: bool
    content: Content
    volume_sector_size: int | None
    """Bytes; None if that is not to be known."""
    root: bool
    """Whether root reads them, who can make loop devices."""

    @property
    def sector_size(self) -> int:
        """Bytes of the sectors that the disk is to be shown with."""
        content, own = self.content, self.volume_sector_size or _USUAL_SECTOR
        if content == NOTHING:
            return _USUAL_SECTOR  # what is to be made on the file itself will count on that
        if content.block_size is None:
            return own  # as dm-crypt shows it
        return content.block_size if content.partitioned else min(own, content.block_size)

    def lines(self) -> list[str]:
        """Return the lines."""
        image, mountpoint = self.options.image, shlex.quote(self.options.mountpoint)
        steps = [*([self._losetup()] if self.root else self._without_root()), self._qemu()]
        return [
            f"{image} is the volume's plaintext{self._what()}. To go on, for instance:",
            *(f"  {step}" for step in steps),
            f"To undo it: lukshdrfs unmount {mountpoint}",
        ]

    def _what(self) -> str:
        return f" ({self.content.kind})" if self.content.kind else ""

    def _losetup(self) -> str:
        words = ["losetup", "--find", "--show"]
        if self.sector_size != _USUAL_SECTOR:
            words += ["--sector-size", str(self.sector_size)]
        if self.content.partitioned:
            words.append("--partscan")
        if self.read_only:
            words.append("--read-only")
        return shlex.join([*words, self.options.image])

    def _without_root(self) -> list[str]:
        image = shlex.quote(self.options.image)
        steps = []
        if self.content == NOTHING and not self.read_only:
            steps.append(f"mkfs.ext4 -E root_owner={os.getuid()}:{os.getgid()} {image}")
        if self.content == NOTHING or self.content.kind in ("ext2", "ext3", "ext4"):
            options = " -o ro" if self.read_only else ""
            steps += [f"fuse2fs{options} {image} DIRECTORY", f"debugfs{'' if self.read_only else ' -w'} {image}"]
        shared = {"allow_other", "allow_root"} & {*self.options.kernel_options}
        if shared and self.sector_size == _USUAL_SECTOR:
            steps.append(f"udisksctl loop-setup{' --read-only' if self.read_only else ''} --file {image}")
        elif shared:
            steps.append(f"sudo {self._losetup()}")
        return steps

    def _qemu(self) -> str:
        # QEMU splits an option at its commas, and takes two for one
        drive = f"file={self.options.image.replace(',', ',,')},format=raw,cache=none"
        if self.read_only:
            drive += ",readonly=on"
        if not self.content.partitioned or self.sector_size == _USUAL_SECTOR:
            return shlex.join(["qemu-system-x86_64", "-drive", f"{drive},if=virtio"])
        blocks = f"logical_block_size={self.sector_size},physical_block_size={self.sector_size}"
        device = ["-device", f"virtio-blk-pci,drive=plain,{blocks}"]
        return shlex.join(["qemu-system-x86_64", "-drive", f"{drive},if=none,id=plain", *device])


def show_of_volume(volume: Volume, options: MountOptions) -> None:
    """Show them to whoever is at the terminal, before the volume is served."""
    if sys.stdout.isatty():
        _show(options, volume.size, volume.pread, volume.sector_size, read_only=volume.read_only)


def show_of_image(options: MountOptions, *, read_only: bool) -> None:
    """Show them to whoever is at the terminal, by what the mounted image says of itself."""
    if not sys.stdout.isatty():
        return
    try:
        descriptor = os.open(options.image, os.O_RDONLY)
    except OSError:  # it is meant for somebody else (`uid=`)
        _show(options, 0, lambda _size, _offset: b"", None, read_only=read_only)
        return
    try:
        sector_size = int(os.getxattr(descriptor, f"{PROPERTY_PREFIX}sector_size"))
        size = os.fstat(descriptor).st_size
        _show(
            options, size, lambda count, offset: os.pread(descriptor, count, offset), sector_size, read_only=read_only
        )
    finally:
        os.close(descriptor)


def _show(options: MountOptions, size: int, read: Read, sector_size: int | None, *, read_only: bool) -> None:
    try:
        content = content_of(size, read)
    except (OSError, LukshdrfsError):  # the mount is there all the same, and will say so itself
        content = NOTHING
    steps = Steps(options, read_only, content, sector_size, root=os.geteuid() == 0)
    sys.stdout.write("".join(f"{printable(line)}\n" for line in steps.lines()))


FIRST_BLOCK = 4096
"""Bytes that are read to see that the image can be."""


def read_first_block(image: str) -> None:
    try:
        descriptor = os.open(image, os.O_RDONLY)
    except PermissionError:
        return  # the mount has answered; the image is meant for somebody else (`uid=`)
    try:
        os.pread(descriptor, FIRST_BLOCK, 0)
    finally:
        os.close(descriptor)
