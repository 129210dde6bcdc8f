"""The payload of a new volume: made or found, looked at before it is overwritten, filled."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lukshdrfs.cli.arguments import payload_name
from lukshdrfs.cli.commands.create.request import is_detached, wanted_size
from lukshdrfs.cli.overwriting import Overwritten, overwritten_payload
from lukshdrfs.cli.terminal.progress import Progress
from lukshdrfs.errors import DeviceError, UsageError
from lukshdrfs.luks.luks1.format import Luks1Format
from lukshdrfs.luks.luks2.format import Luks2Format
from lukshdrfs.payload import (
    Access,
    Payload,
    new_payload,
    open_payload,
)
from lukshdrfs.volume import fill_with_random

log = logging.getLogger(__name__)


@contextmanager
def opened_payload(arguments: argparse.Namespace) -> Iterator[tuple[Payload, Overwritten | None]]:
    """
    Yield the payload, opened and locked, and the part of it that is overwritten.

    If it is made here, there is no such part, and it goes when something fails.
    """
    what, name = payload_name(arguments), arguments.payload
    created = not what.is_network and not os.path.lexists(name)
    if created and arguments.size is None:
        raise DeviceError(f"payload {name} is not there; --size creates it")
    if not created and arguments.size is not None and (arguments.offset is None or not is_detached(arguments)):
        raise UsageError(
            f"payload {name} is there already and keeps its size; leave out --size (--offset, --size and a detached "
            "header make a part of it the volume)"
        )
    if created:
        with new_payload(what, arguments.size) as made:
            yield made, None
        return
    size_ = wanted_size(arguments, created=created)
    window = None if size_ is None else (int(arguments.offset), size_)
    with open_payload(what, Access(window=window)) as payload:
        yield payload, _overwritten(arguments, payload)


def _overwritten(arguments: argparse.Namespace, payload: Payload) -> Overwritten:
    """Look at what will be the volume. Raises DeviceError if there is data in it, unless that is forced."""
    start = (arguments.offset or 0) if is_detached(arguments) else 0
    if start >= payload.size:
        raise DeviceError(f"payload {payload.name} has {payload.size} bytes; the data would begin at byte {start}")
    header = arguments.shared_header
    header_before = header is not None and os.path.realpath(header) == os.path.realpath(arguments.payload)
    size_ = wanted_size(arguments, created=False)
    if size_ is not None and start + size_ > payload.size:
        raise DeviceError(
            f"payload {payload.name} has {payload.size} bytes; the volume would end at byte {start + size_}"
        )
    overwritten = overwritten_payload(payload, start, size_, header_before=header_before)
    overwritten.refuse(force=arguments.force, wipe=bool(arguments.wipe))
    return overwritten


def fill(arguments: argparse.Namespace, payload: Payload, form: Luks1Format | Luks2Format, *, created: bool) -> None:
    """Fill the payload, or the window of it that is the volume, if that is asked for or it was made here."""
    thin = not payload_name(arguments).is_plain
    if created and not thin if arguments.wipe is None else arguments.wipe:
        window = wanted_size(arguments, created=created)
        # what lies before the data of a detached header is somebody else's, unless all of it was made here
        start = form.data_offset if is_detached(arguments) and not created else 0
        _wipe(payload, (start, payload.size - start if window is None else window), created=created)
    elif created and thin:
        sys.stderr.write("the payload is thin: its size shows how much has been written, its tables where\n")
    elif created:
        sys.stderr.write("the payload is sparse: it shows how much of it is used, and that it is not random data\n")


def _wipe(payload: Payload, window: tuple[int, int], *, created: bool) -> None:
    """Fill a part of the payload with random bytes, so that used and unused sectors look alike."""
    offset, size_ = window
    try:
        with Progress(f"filling {payload.name} with random bytes", size_) as progress:
            fill_with_random(payload, offset, size_, progress.show)
    except BaseException:
        if not created:
            log.warning("payload %s is partly overwritten, and no header was made; run create again", payload.name)
        raise
