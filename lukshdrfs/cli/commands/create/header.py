"""The header that is made: its form, and where it goes."""

from __future__ import annotations

import argparse
import os
from uuid import uuid4

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.cli.commands.create.request import is_detached, wanted_size
from lukshdrfs.cli.overwriting import HeaderPlace
from lukshdrfs.errors import DeviceError, PayloadError, UsageError
from lukshdrfs.headers import create_header_file, replace_header_file
from lukshdrfs.headers.lock import header_lock
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT
from lukshdrfs.luks.luks1.format import HEADER_ALIGNMENT, Luks1Format, header_size
from lukshdrfs.luks.luks2.format import Luks2Format
from lukshdrfs.luks.luks2.layout import KEYSLOTS_SIZE, METADATA_SIZE
from lukshdrfs.payload import (
    sync_descriptor,
    write_all,
)
from lukshdrfs.sectors import SECTOR as LUKS1_SECTOR_SIZE
from lukshdrfs.sectors import SECTOR_SIZES, round_down, round_up


def header_form(
    arguments: argparse.Namespace, cipher: CipherSpec, key_size: int, payload_size: int, *, created: bool
) -> Luks1Format | Luks2Format:
    """Return what the header is to be, after checking that the payload has whole sectors for it."""
    identifier = arguments.uuid or str(uuid4())
    usual_hash = "sha256" if arguments.hash is None else find_hash(arguments.hash).name
    if arguments.type == "luks1":
        if wanted_size(arguments, created=created) is not None:
            raise UsageError("a LUKS1 header cannot say how much of the payload is the volume; take --type luks2")
        offset = _data_offset(arguments, header_size(key_size))
        _sector_size(LUKS1_SECTOR_SIZE, payload_size, offset)
        return Luks1Format(cipher, identifier, usual_hash, offset)
    metadata_size = METADATA_SIZE if arguments.luks2_metadata_size is None else arguments.luks2_metadata_size
    keyslots_size = arguments.luks2_keyslots_size
    if keyslots_size is None:
        # cryptsetup takes no header that reaches past the data's offset, even if it lies elsewhere
        most = 2 * METADATA_SIZE + KEYSLOTS_SIZE
        keyslots_size = min(most, round_down(arguments.offset or most, AREA_ALIGNMENT)) - 2 * metadata_size
    offset = _data_offset(arguments, 2 * metadata_size + keyslots_size)
    window = wanted_size(arguments, created=created)
    end = payload_size if window is None else offset + window
    if end > payload_size:
        raise DeviceError(f"the payload has {payload_size} bytes; the volume would end at byte {end}")
    return Luks2Format(
        cipher,
        _sector_size(arguments.sector_size, end, offset),
        identifier,
        usual_hash,
        arguments.label,
        arguments.subsystem,
        offset,
        window,
        metadata_size,
        keyslots_size,
    )


def _data_offset(arguments: argparse.Namespace, header_size_: int) -> int:
    """Return the byte of the payload at which the data begin: behind an attached header, at 1 MiB steps."""
    if arguments.offset is not None:
        if arguments.offset % LUKS1_SECTOR_SIZE:
            raise UsageError(f"--offset {arguments.offset}: expected a multiple of {LUKS1_SECTOR_SIZE} bytes")
        if not is_detached(arguments) and arguments.offset < header_size_:
            raise UsageError(f"--offset {arguments.offset}: the header before it takes {header_size_} bytes")
        return int(arguments.offset)
    return 0 if is_detached(arguments) else round_up(header_size_, HEADER_ALIGNMENT)


def _sector_size(wanted: int | None, payload_size: int, offset: int) -> int:
    """Return the sector size in bytes, after checking that the payload has whole sectors."""
    if wanted is not None and wanted not in SECTOR_SIZES:
        raise UsageError(f"--sector-size {wanted}: expected {', '.join(map(str, SECTOR_SIZES))}")
    space = payload_size - offset
    sector_size = wanted or (SECTOR_SIZES[0] if space % SECTOR_SIZES[-1] else SECTOR_SIZES[-1])
    if space < sector_size or space % sector_size:
        behind = f" from byte {offset} on" if offset else ""
        raise DeviceError(f"the payload has {max(space, 0)} bytes{behind}, not whole sectors of {sector_size}")
    return sector_size


def write_header(arguments: argparse.Namespace, place: HeaderPlace, area: bytes) -> None:
    """Write the header: a file appears when it is complete, a device is written in place."""
    path, name = place.path, f"header {place.path}"
    if not place.is_device:
        place.make_way(arguments)
        if place.descriptor is None:
            create_header_file(path, area)  # refuses if somebody has made one meanwhile
        else:
            replace_header_file(path, area, place.descriptor)
        return
    descriptor = place.descriptor
    assert descriptor is not None
    device_size = os.lseek(descriptor, 0, os.SEEK_END)
    if device_size < len(area):
        raise PayloadError(f"{name} has {device_size} bytes, a header takes {len(area)}; see --luks2-keyslots-size")
    with header_lock(descriptor, str(path), exclusive=True):
        place.make_way(arguments)
        place.erase_signatures(lambda data, offset: write_all(descriptor, data, offset, name))
        write_all(descriptor, area, 0, name)
        sync_descriptor(descriptor, name)
