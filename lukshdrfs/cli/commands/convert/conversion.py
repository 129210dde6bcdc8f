"""A conversion as a command has it: payload, header and keys, from here to its end or to a signal."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from lukshdrfs.cli.arguments import kdf_limits, new_secret_source, payload_name, pin, secret_source
from lukshdrfs.cli.commands.convert.progress import ConversionProgress, Pace, ended_by_signals
from lukshdrfs.cli.one_header import header_name
from lukshdrfs.errors import LukshdrfsError, UsageError, WrongKey
from lukshdrfs.headers import HeaderFile, locked_for_writing, parse_from, read_header
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.headers.lock import ReencryptionLock
from lukshdrfs.headers.tolerance import FOR_UNLOCKING
from lukshdrfs.luks.convert import to_luks1
from lukshdrfs.luks.keys.unlock import UnlockedKey, accept_volume_key, unlock
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState
from lukshdrfs.luks.model import Digest, Header
from lukshdrfs.payload import Access, Payload, open_payload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import Window, check_usable, window_of
from lukshdrfs.volume.half_converted import HalfConverted, Keys, unlock_keys
from lukshdrfs.volume.moving.beginning import Resilience
from lukshdrfs.volume.moving.reencryption import Reencryption
from lukshdrfs.volume.moving.sides import Sides
from lukshdrfs.volume.placement import shift_of

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Conversion:
    """A conversion that has begun. A context manager that lets go of everything."""

    arguments: argparse.Namespace
    half: HalfConverted
    header: LiveHeader
    keys: Keys
    held: ExitStack

    @classmethod
    def found(cls, arguments: argparse.Namespace, mode: str) -> Self | None:
        """Return the conversion that the header says has begun, None if it says that none has."""
        name = header_name(arguments)
        header = read_header(name, pin(arguments), FOR_UNLOCKING)
        state = ReencryptionState.of(header)
        if state is None:
            return None
        if state.mode != mode:
            raise UsageError(f"header {name}: its conversion is a '{state.mode}'; go on with 'lukshdrfs {state.mode}'")
        check_usable(header, state)
        with ExitStack() as held:
            payload = held.enter_context(opened_payload(arguments, header))
            half = HalfConverted(header, state, payload, shift_of(header, Window(arguments.offset)))
            held.callback(ReencryptionLock(header.uuid).release)
            live = held.enter_context(LiveHeader(half.header_path(name), header))
            keys = held.enter_context(_unlocked(arguments, header, state))
            return cls(arguments, half, live, keys, held.pop_all())

    def run(self) -> int:
        """Convert to the end, or to a signal: then 1 is returned, and it is said how to go on."""
        with (
            Sides.opened(self.half.payload, self.half.state, self.keys.old, self.keys.new, self.half.shift) as sides,
            ended_by_signals() as signals,
        ):
            conversion = Reencryption(sides, self.header, self.half.state, self.half.size, self.arguments.hotzone_size)
            over = conversion.recover()
            if not over:
                self._protect(conversion)
            with ConversionProgress(self.arguments, self.half.state.mode, self.half.size, conversion.done) as progress:
                pace = Pace(self.arguments.rate, conversion.done)
                over = over or conversion.run(
                    lambda done: progress.show(done) and not signals and pace.keep(done, lambda: bool(signals))
                )
                progress.finish(conversion.done)
        if not over:
            log.error(
                "interrupted; %d of %d bytes are converted. Run the command again to go on; the volume can be mounted",
                conversion.done, self.half.size,
            )  # fmt: skip
            return 1
        if self.half.state.mode == "encrypt" and self.arguments.type == "luks1":
            self._become_luks1()
        if self.half.state.mode == "decrypt":
            log.info("the payload holds plain data; its header opens nothing any more")
        return 0

    def _become_luks1(self) -> None:
        """Put a LUKS1 header in the place of the one that the conversion has needed."""
        with locked_for_writing(self.header.name, alone=True) as descriptor:
            file = HeaderFile(descriptor, self.header.name, parse_from(descriptor, self.header.name))
            file.replace(to_luks1(file.header))

    def _protect(self, conversion: Reencryption) -> None:
        """Give the conversion the protection that is asked for, or one that fits the volume's size."""
        wanted = self.arguments.resilience
        protection = conversion.state.protection
        if protection.shift:
            if wanted is not None:
                raise UsageError("--resilience: a conversion that shifts the data keeps its protection")
            return
        if protection.type == "none" and wanted is None:
            raise UsageError(
                "the conversion was begun without any resilience, so nothing tells how far it has come; if nothing has "
                "been converted yet, go on with --resilience checksum"
            )
        odd = protection.in_place == "checksum" and self.half.size % protection.block_size
        kind = wanted or protection.type
        if kind != protection.type or odd:
            conversion.protect(Resilience(kind, self.arguments.resilience_hash), self.keys)

    def close(self) -> None:
        """Let go of everything."""
        self.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_together(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what cannot be asked together."""
    if arguments.init_only and arguments.resume_only:
        raise UsageError("give one of --init-only and --resume-only")
    if arguments.resilience not in (None, "checksum", "journal"):
        raise UsageError(f"--resilience {arguments.resilience}: expected checksum or journal")
    if arguments.hotzone_size is not None and arguments.hotzone_size < 4096:
        raise UsageError(f"--hotzone-size {arguments.hotzone_size}: expected 4096 bytes or more")


def opened_payload(arguments: argparse.Namespace, header: Header | None, window: Window | None = None) -> Payload:
    """Open the payload for this program alone, or that part of it that is the volume."""
    what = payload_name(arguments)
    what.check()
    if header is not None:
        part = window_of([header], window or Window(arguments.offset)) if arguments.header else None
    else:
        part = None if window is None or window.size is None else (window.offset or 0, window.size)
    return open_payload(what, Access(window=part))


def _unlocked(arguments: argparse.Namespace, header: Header, state: ReencryptionState) -> Keys:
    """Ask for the secret and return both keys; with another new secret, each key opens with either of the two."""
    source, limits = secret_source(arguments), kdf_limits(arguments)
    other = new_secret_source(arguments) if hasattr(arguments, "new_key_file") else None
    more = [other.read("New passphrase: ")] if other is not None and other.named else []

    def key_of(digest: Digest, secret: SecretBytes) -> UnlockedKey:
        if source.volume_key_file is not None:
            return accept_volume_key(header, digest, secret, limits)
        problems: list[LukshdrfsError] = []
        for one in (secret, *more):
            try:
                return unlock(header, digest, one, arguments.key_slot if digest == state.old_digest else None, limits)
            except LukshdrfsError as error:
                problems.append(error)
        raise next((problem for problem in problems if isinstance(problem, WrongKey)), problems[-1])

    try:
        return source.try_until(
            f"Passphrase for {arguments.payload}: ",
            lambda secret: unlock_keys(state, lambda digest: key_of(digest, secret), limits),
        )
    finally:
        for secret in more:
            secret.wipe()
