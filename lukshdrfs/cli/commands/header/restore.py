"""Putting a backup in the place of a header, without losing what was there."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from lukshdrfs.cli.arguments import pin
from lukshdrfs.cli.kept_copies import keep
from lukshdrfs.errors import DeviceError, HeaderError, UsageError
from lukshdrfs.headers import (
    HeaderFile,
    create_header_file,
    locked_for_writing,
    parse_from,
    read_header,
    source_descriptor,
)
from lukshdrfs.luks.backup import backup_of
from lukshdrfs.luks.luks1.format import HEADER_ALIGNMENT
from lukshdrfs.luks.luks2.requirements import is_reencrypt_candidate
from lukshdrfs.luks.model import Header
from lukshdrfs.luks.verify import verify
from lukshdrfs.recognition import names_of
from lukshdrfs.sectors import round_up

_STAGES = ("volume key", "data conversion")
"""What differs between headers of one volume, before and after a conversion."""

log = logging.getLogger(__name__)


def restore(arguments: argparse.Namespace, backup: Header, target: str) -> None:
    """
    Put a backup in the place of a header, as the options of `header restore` say.

    Raises HeaderError if it is another volume's, DeviceError if something else is there, UsageError.
    """
    if source_descriptor(target) is not None:
        raise DeviceError(f"header {target}: only a file or device can be restored; name it by its path")
    if not os.path.lexists(target):
        if not arguments.header:
            raise DeviceError(f"{target} is not there")
        create_header_file(Path(target), backup_of(backup))
        return
    with locked_for_writing(target, alone=True) as descriptor:
        try:
            file = HeaderFile(descriptor, target, parse_from(descriptor, target))
        except HeaderError as error:
            _restore_over_damage(arguments, HeaderFile(descriptor, target, backup), error)
            return
        _check_pin(arguments, file, file.header)
        _check_same_volume(file, backup, force=arguments.force)
        # what fills a LUKS1 backup up goes into a new file only: in place, the data may begin before its end
        data = backup_of(backup) if file.is_detached else backup_of(backup)[: len(backup.area)]
        keep(arguments, target, file.read(max(len(file.header.area), len(data))))
        file.replace(data)


def _check_pin(arguments: argparse.Namespace, file: HeaderFile, header: Header) -> None:
    """Raise HeaderError unless what is to be overwritten is what the user pinned; `header` has its UUID."""
    pinned = pin(arguments)
    if pinned.sha256:
        pinned.check_bytes(file.read(file.size), file.name)
    pinned.check_uuid(header, file.name)


def _check_same_volume(file: HeaderFile, backup: Header, *, force: bool) -> None:
    now = file.header
    differences = {
        "type": (now.type, backup.type),
        "UUID": (now.uuid, backup.uuid),
        "data offset": (now.segments[0].offset, backup.segments[0].offset),
        "key size": (_key_size(now), _key_size(backup)),
        "volume key": (_key_of(now), _key_of(backup)),
        "data conversion": (_conversion_of(now), _conversion_of(backup)),
    }
    for what, (here, there) in differences.items():
        if here == there:
            continue
        message = f"{file.name} has the {what} {here}, the backup {there}"
        if not force:
            whose = "of another stage of the volume" if what in _STAGES else "another volume's"
            raise HeaderError(f"{message}: it is {whose}; --force restores it all the same")
        log.warning("%s", message)


def _key_of(header: Header) -> str:
    """Return what tells a volume key from another: its digest, which changing passphrases leaves as it is."""
    digest = header.digest_of_segment(header.segments[0].id)
    return "none" if digest is None else f"of digest {digest.digest[:6].hex()}…"


def _conversion_of(header: Header) -> str:
    """Return how far a conversion is."""
    if not any(is_reencrypt_candidate(name) for name in header.requirements):
        return "(none)"
    at = "+".join(str(segment.size or "…") for segment in header.segments)
    hot = "in work" if any(segment.flags for segment in header.segments) else "at rest"
    return f"{at} ({hot}, epoch {header.seqid})"


def _key_size(header: Header) -> int | None:
    return next((slot.key_size for slot in header.keyslots if slot.type == "luks2"), None)


def _restore_over_damage(arguments: argparse.Namespace, file: HeaderFile, error: HeaderError) -> None:
    """Restore where there is no valid header to compare with; `file` has the backup for its header."""
    target, backup = file.name, file.header
    data, first = backup_of(backup)[: len(backup.area)], backup.segments[0].offset
    if not arguments.header and first < len(backup.area):
        raise UsageError(f"the backup is of a detached header; name its place with --header, not {target}")
    found = names_of(one for one in file.recognised() if not one.is_luks)
    if found and not arguments.force:
        raise DeviceError(f"{target} holds data ({found}) and no valid header; --force overwrites it")
    _check_pin(arguments, file, backup)
    largest = round_up(len(data), HEADER_ALIGNMENT)  # header files of LUKS1 are larger than their backups
    if file.is_regular and first == 0 and file.size > largest and not arguments.force:
        raise DeviceError(f"{target} is larger than the header, and no header; --force overwrites its start")
    log.warning("%s; it is overwritten%s", error, f", and so is {found}" if found else "")
    keep(arguments, target, file.read(len(data)))
    file.overwrite(data)


def repair_from(arguments: argparse.Namespace, target: str) -> tuple[str, ...]:
    """
    Put a sound copy in the place of a damaged header; return what was wrong with it, nothing if it was sound.

    Raises HeaderError if the copy is damaged itself, or is another volume's.
    """
    copy = read_header(arguments.source, warn=False)
    if problems := _problems(copy):
        raise HeaderError(f"header {arguments.source} is damaged itself: {problems[0]}")
    try:
        header = read_header(target, pin(arguments), warn=False)
        found = _problems(header) + tuple(text for text in _unsupported(header) if text not in _unsupported(copy))
    except HeaderError as error:
        found = (str(error),)
    if found:
        restore(arguments, copy, target)
    return found


def _unsupported(header: Header) -> tuple[str, ...]:
    """Return what is not supported: what the copy does not ask for has come by damage."""
    texts = [slot.unsupported for slot in header.keyslots] + [digest.unsupported for digest in header.digests]
    return tuple(dict.fromkeys(filter(None, texts)))


def _problems(header: Header) -> tuple[str, ...]:
    findings = verify(header, len(header.area))
    return tuple(f"{found.subject}: {found.text}" for found in findings if found.severity == "error")
