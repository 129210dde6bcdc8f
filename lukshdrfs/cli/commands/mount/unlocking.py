"""From the headers and secrets of a command line to an unlocked volume."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from lukshdrfs.cli.arguments import (
    kdf_limits,
    payload_name,
    pin,
)
from lukshdrfs.cli.commands.mount.request import (
    Request,
)
from lukshdrfs.cli.commands.mount.waiting import wait_for_any
from lukshdrfs.cli.secrets.keyring import token_secrets
from lukshdrfs.errors import LukshdrfsError, WrongKey
from lukshdrfs.headers import parse_from, read_header
from lukshdrfs.headers.tolerance import FOR_UNLOCKING
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.unlock_work import check_work
from lukshdrfs.luks.luks2.shared import choose_payload, header_for
from lukshdrfs.luks.model import Header
from lukshdrfs.payload import (
    Access,
    NbdPayload,
    Payload,
    open_payload,
)
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import LockedVolume, Volume, Window, check_raw, lock_volume, window_of

log = logging.getLogger(__name__)

T = TypeVar("T")


R = TypeVar("R")


def unlock_first(request: Request) -> tuple[Volume, str | None]:
    """Return the volume that the first working header opens, and that header; say what was wrong with the others."""
    arguments = request.arguments
    window = Window(arguments.offset, arguments.size)
    tolerance = replace(FOR_UNLOCKING, checksums_wrong=arguments.force_header)
    early: Payload | None = None

    def read(name: str | None) -> tuple[str | None, Header]:
        if name is None and isinstance(early, NbdPayload):
            header = parse_from(early, early.name, pin(arguments), tolerance)
        else:
            header = read_header(arguments.payload if name is None else name, pin(arguments), tolerance)
        payload = choose_payload(header, arguments.payload_name, arguments.payload)
        return name, header if payload is None else header_for(header, payload)

    def lock(named: tuple[str | None, Header]) -> LockedVolume:
        locked = lock_volume(payload, named[1], header_name=named[0], window=window)
        locked.check_place(arguments.pass_over)
        if request.secrets.volume_key_file is None:
            locked.check_work(arguments.key_slot, kdf_limits(arguments))
        return locked

    if arguments.header_timeout is not None:
        wait_for_any(arguments.header or [arguments.payload], arguments.header_timeout)
    try:
        if not payload_name(arguments).is_plain and not arguments.header:
            early = _open_payload(arguments, None)  # the header is in it
        headers = _usable(read, arguments.header or [None])
        part = window_of([header for _, header in headers], window) if arguments.header else None
        payload = early or _open_payload(arguments, part)
        early = payload
        check_raw(payload, arguments.pass_over)
        return _try_secrets(_usable(lock, headers), request)
    except BaseException:
        if early:
            early.close()
        raise


def _open_payload(arguments: argparse.Namespace, part: tuple[int, int] | None) -> Payload:
    """Open the payload, or that part of it that is meant."""
    how = Access(
        read_only=arguments.read_only,
        write_through=arguments.cache == "writethrough",
        preserve_times=arguments.preserve_times,
        window=part,
        patience_s=arguments.payload_timeout,
    )
    return open_payload(payload_name(arguments), how)


def _usable(work: Callable[[T], R], candidates: Iterable[T]) -> list[R]:
    """Do something with each candidate; return the results, or raise the last error if there is no result."""
    results: list[R] = []
    problems: list[LukshdrfsError] = []
    for candidate in candidates:
        try:
            results.append(work(candidate))
        except LukshdrfsError as error:
            problems.append(error)
    last = None if results else problems.pop()
    for problem in problems:
        log.warning("%s; trying another header", problem)
    if last:
        raise last
    return results


def _try_secrets(candidates: list[LockedVolume], request: Request) -> tuple[Volume, str | None]:
    """Ask until a secret opens one of the candidates, or as often as allowed. Keys that tokens name are tried first."""
    if not request.secrets.named:
        opened = _try_tokens(candidates, request)
        if opened is not None:
            return opened
    prompt = f"Passphrase for {request.arguments.payload}: "
    return request.secrets.try_until(prompt, lambda secret: _open_any(candidates, secret, request))


def _try_tokens(candidates: list[LockedVolume], request: Request) -> tuple[Volume, str | None] | None:
    """Return the volume that a key in the kernel's keyring opens, if a token of the header names one."""
    wanted, spent, limits = request.arguments.key_slot, 0, kdf_limits(request.arguments) or KdfLimits()
    for locked in candidates:
        for secret, keyslots in token_secrets(locked.header):
            with secret:
                for keyslot in (number for number in keyslots if wanted in (None, number)):
                    try:
                        slots = [slot for slot in locked.header.keyslots if slot.id == keyslot]
                        spent = check_work(locked.header, slots, limits, before=spent)
                        volume = locked.unlock(secret, keyslot, limits)
                    except LukshdrfsError as error:
                        log.info("keyslot %d, with its token's key: %s", keyslot, error)
                    else:
                        return volume, locked.header_name
    return None


def _open_any(candidates: list[LockedVolume], secret: SecretBytes, request: Request) -> tuple[Volume, str | None]:
    problems: list[LukshdrfsError] = []
    for locked in candidates:
        try:
            limits = kdf_limits(request.arguments)
            if request.secrets.volume_key_file is not None:
                return locked.unlock_with_volume_key(secret, limits), locked.header_name
            return locked.unlock(secret, request.arguments.key_slot, limits), locked.header_name
        except LukshdrfsError as error:
            problems.append(type(error)(f"{request.arguments.payload}: {error}"))
    raise next((problem for problem in problems if isinstance(problem, WrongKey)), problems[-1])
