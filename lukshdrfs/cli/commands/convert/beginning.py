"""Beginning a conversion from the command line: what is there, what becomes of it, and with which keys."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.cli.arguments import (
    checked_uuid,
    kdf_limits,
    kdf_wish,
    key_bytes,
    new_secret_source,
    pin,
    secret_source,
)
from lukshdrfs.cli.commands.convert.asking import ask
from lukshdrfs.cli.commands.convert.conversion import Conversion, opened_payload
from lukshdrfs.cli.one_header import header_name
from lukshdrfs.cli.secrets.source import new_secret
from lukshdrfs.errors import DeviceError, UnsupportedFeature, UsageError
from lukshdrfs.headers import create_header_file, read_header
from lukshdrfs.headers.live import LiveHeader
from lukshdrfs.headers.lock import ReencryptionLock
from lukshdrfs.headers.tolerance import FOR_UNLOCKING
from lukshdrfs.luks.convert import to_luks1
from lukshdrfs.luks.header import parse_header
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.unlock import UnlockedKey, accept_volume_key, unlock
from lukshdrfs.luks.keys.unlock_work import check_work_to_unlock
from lukshdrfs.luks.keyslots import add_keyslot, new_keyslot, volume_digest
from lukshdrfs.luks.luks2.format import Luks2Format
from lukshdrfs.luks.luks2.layout import KEYSLOTS_SIZE, METADATA_SIZE
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState
from lukshdrfs.luks.luks2.shared import shared_payloads
from lukshdrfs.luks.model import Header
from lukshdrfs.payload import Payload
from lukshdrfs.recognition import names_of, recognise
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR, SECTOR_SIZES, round_down
from lukshdrfs.volume import LockedVolume, PassOver, Window, check_raw, lock_volume
from lukshdrfs.volume.half_converted import HalfConverted, Keys
from lukshdrfs.volume.moving import beginning
from lukshdrfs.volume.moving.beginning import NewSide, Resilience
from lukshdrfs.volume.moving.space import check_space
from lukshdrfs.volume.placement import shift_of


def begin_encryption(arguments: argparse.Namespace) -> Conversion:
    """Write the header of plain data that are to be encrypted from now on."""
    if arguments.type not in ("luks1", "luks2"):
        raise UsageError(f"--type {arguments.type}: expected luks2 or luks1")
    if arguments.volume_key_file is not None or arguments.key_slot is not None:
        raise UsageError("--volume-key-file and --key-slot are of a volume that is there; leave them out")
    if arguments.size is not None and arguments.offset is None:
        raise UsageError("--size: a part of the payload has a beginning, too; give --offset")
    name = Path(header_name(arguments))
    if os.path.realpath(name) == os.path.realpath(arguments.payload):
        raise UsageError("header and payload are the same file; a conversion keeps the header apart")
    cipher = CipherSpec.parse(arguments.cipher or "aes-xts-plain64")
    key_size = key_bytes(arguments.key_size, "--key-size") or cipher.key_sizes[-1]
    wish = kdf_wish(arguments, 1 if arguments.type == "luks1" else 2, "sha256")
    wish.check()
    with ExitStack() as held:
        payload = held.enter_context(opened_payload(arguments, None, Window(arguments.offset, arguments.size)))
        check_raw(payload, PassOver(force=arguments.force))
        if not arguments.force:
            check_space(payload)
        offset = arguments.offset or 0
        size = payload.size - offset if arguments.size is None else arguments.size
        if size <= 0 or size > payload.size - offset or size % SECTOR or offset % SECTOR:
            raise DeviceError(
                f"payload {payload.name} has {payload.size} bytes; what is to be encrypted, {size} bytes from byte "
                f"{offset} on, is not whole sectors of {SECTOR} in it"
            )
        found = _checked_plain(arguments, payload, offset, size)
        ask(arguments, payload, (offset, size), found, "encrypted")
        key = held.enter_context(_kept(SecretBytes.random(key_size)))
        form = _form(arguments, cipher, wish.hash, size)
        secret_from = secret_source(arguments)
        with new_secret(secret_from, f"New passphrase for {arguments.payload}: ") as secret:
            area = form.written(key)
            parsed = parse_header(area)
            slot = new_keyslot(
                parsed, key_size, wish, encryption=arguments.keyslot_cipher,
                area_key_size=key_bytes(arguments.keyslot_key_size, "--keyslot-key-size"),
            )  # fmt: skip
            area = add_keyslot(parsed, key, secret, slot)[1].applied_to(area)
        if arguments.type == "luks1":
            to_luks1(parse_header(area))  # what it does not have is refused now, and not at the end
        area, state = beginning.begin_encryption(area, key, size, _resilience(arguments))
        create_header_file(name, area)
        header = parse_header(area)
        held.callback(ReencryptionLock(header.uuid).release)
        live = held.enter_context(LiveHeader(str(name), header))
        return Conversion(arguments, HalfConverted(header, state, payload), live, Keys(None, key), held.pop_all())


def _checked_plain(arguments: argparse.Namespace, payload: Payload, offset: int, size: int) -> str:
    """Return what is on the payload; raise DeviceError if it is encrypted already, unless that is forced."""
    found = recognise(payload, offset, size)
    if any(one.is_luks for one in found) and not arguments.force:
        raise DeviceError(
            f"payload {payload.name} is encrypted already ({names_of(found)}); 'lukshdrfs reencrypt' gives it another "
            "key, and --force encrypts it as it is"
        )
    return names_of(found) or "nothing that is recognised"


def _form(arguments: argparse.Namespace, cipher: CipherSpec, hash_name: str, size: int) -> Luks2Format:
    metadata_size = arguments.luks2_metadata_size or METADATA_SIZE
    offset = arguments.offset or 0
    most = 2 * METADATA_SIZE + KEYSLOTS_SIZE
    keyslots_size = arguments.luks2_keyslots_size or (
        # cryptsetup takes no header that reaches past the data's offset, even if it lies elsewhere
        round_down(min(most, offset or most), 4096) - 2 * metadata_size
    )
    wanted = arguments.sector_size
    if wanted is not None and wanted not in SECTOR_SIZES:
        raise UsageError(f"--sector-size {wanted}: expected {', '.join(map(str, SECTOR_SIZES))}")
    sector_size = wanted or (
        SECTOR_SIZES[0] if arguments.type == "luks1" or size % SECTOR_SIZES[-1] else SECTOR_SIZES[-1]
    )
    return Luks2Format(
        cipher, sector_size, checked_uuid(arguments.uuid) if arguments.uuid else str(uuid4()), hash_name,
        arguments.label, arguments.subsystem, offset, arguments.size, metadata_size, keyslots_size,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _There:
    """A volume that is there, held alone, with its key."""

    header: Header
    live: LiveHeader
    locked: LockedVolume
    key: UnlockedKey
    secret: SecretBytes


def begin_reencryption(arguments: argparse.Namespace) -> Conversion:
    """Write that a volume is to have another key, cipher or sector size."""
    wish = kdf_wish(arguments, 2, "sha256")
    with ExitStack() as held:
        there = _there(arguments, held)
        segment = there.header.segments[0]
        cipher = CipherSpec.parse(arguments.cipher or segment.encryption)
        old = there.key.volume_key
        key_size = key_bytes(arguments.key_size, "--key-size") or _size_of_key(cipher, len(old))
        side = NewSide(cipher, arguments.sector_size or segment.sector_size, wish.hash)
        _ask(arguments, there, "encrypted anew")
        if arguments.keep_key:
            if key_size != len(old):
                raise UsageError(
                    f"--keep-key: {cipher} is to have {key_size * 8} bits, the volume's key {len(old) * 8}"
                )
            new = held.enter_context(_kept(SecretBytes.copy_of(old.view)))
            keyslots = []
        else:
            new = held.enter_context(_kept(SecretBytes.random(key_size)))
            slot = new_keyslot(
                there.header, key_size, wish, encryption=arguments.keyslot_cipher,
                area_key_size=key_bytes(arguments.keyslot_key_size, "--keyslot-key-size"),
            )  # fmt: skip
            other = new_secret_source(arguments)
            secret = there.secret
            if other.named:
                secret = held.enter_context(_kept(new_secret(other, "New passphrase: ")))
            keyslots = [(secret, slot)]
        keys = Keys(old, new)
        metadata, state, writes = beginning.begin_reencryption(
            there.header, there.live.metadata, keys, side, keyslots, there.locked.size, _resilience(arguments)
        )
        half = _half(arguments, there, state)
        for write in writes:
            there.live.write_area(write.offset, write.data)
        there.live.commit(metadata)
        return Conversion(arguments, half, there.live, keys, held.pop_all())


def begin_decryption(arguments: argparse.Namespace) -> Conversion:
    """Write that a volume is to be plain."""
    if not arguments.header:
        raise UnsupportedFeature(
            "the header lies before the data, and decrypting would have to move them; 'cryptsetup reencrypt --decrypt "
            "--header NEW' begins that, and it can be finished here"
        )
    with ExitStack() as held:
        there = _there(arguments, held)
        _ask(arguments, there, "decrypted")
        metadata, state = beginning.begin_decryption(
            there.header, there.live.metadata, there.key.volume_key, there.locked.size, _resilience(arguments)
        )
        half = _half(arguments, there, state)
        there.live.commit(metadata)
        return Conversion(arguments, half, there.live, Keys(there.key.volume_key, None), held.pop_all())


def _there(arguments: argparse.Namespace, held: ExitStack) -> _There:
    """Open the volume that is there for this program alone, and unlock it."""
    name = header_name(arguments)
    header = read_header(name, pin(arguments), FOR_UNLOCKING)
    if shared_payloads(header):
        raise UnsupportedFeature(f"header {name} is of several payloads, and cannot say of one that it is converted")
    payload = held.enter_context(opened_payload(arguments, header))
    check_raw(payload, PassOver(force=arguments.force))
    if not arguments.force:
        check_space(payload)
    detached = name if arguments.header else None
    locked = lock_volume(payload, header, header_name=detached, window=Window(arguments.offset))
    locked.check_place(PassOver(force=arguments.force))
    digest = volume_digest(header)
    _check_other_keyslots(arguments, digest.keyslots)
    held.callback(ReencryptionLock(header.uuid).release)
    live = held.enter_context(LiveHeader(name, header))
    source, limits = secret_source(arguments), kdf_limits(arguments)
    if source.volume_key_file is None:
        check_work_to_unlock(header, [digest], arguments.key_slot, limits or KdfLimits())

    def open_with(secret: SecretBytes) -> tuple[UnlockedKey, SecretBytes]:
        if source.volume_key_file is not None:
            key = accept_volume_key(header, digest, secret, limits)
        else:
            key = unlock(header, digest, secret, arguments.key_slot, limits)
        return key, SecretBytes.copy_of(secret.view)

    key, secret = source.try_until(f"Passphrase for {arguments.payload}: ", open_with)
    held.enter_context(_kept(key.volume_key))
    held.enter_context(_kept(secret))
    return _There(header, live, locked, key, secret)


def _check_other_keyslots(arguments: argparse.Namespace, keyslots: frozenset[int]) -> None:
    """Raise UsageError if passphrases would be gone at the end that nobody has agreed to lose."""
    if not hasattr(arguments, "keep_key") or arguments.keep_key or arguments.key_slot is not None or len(keyslots) <= 1:
        return
    names = ", ".join(map(str, sorted(keyslots)))
    raise UsageError(
        f"the header has keyslots {names}, and one passphrase makes one new keyslot: the others are gone at the end. "
        "Say with --key-slot which one stays, and add the others again afterwards"
    )


def _size_of_key(cipher: CipherSpec, before: int) -> int:
    return before if before in cipher.key_sizes else cipher.key_sizes[-1]


def _resilience(arguments: argparse.Namespace) -> Resilience:
    return Resilience(arguments.resilience or "checksum", arguments.resilience_hash)


def _half(arguments: argparse.Namespace, there: _There, state: ReencryptionState) -> HalfConverted:
    """Return the volume as it will be from now on. Raises DeviceError, before anything is written, if it cannot be."""
    shift = shift_of(there.header, Window(arguments.offset))
    return HalfConverted(there.header, state, there.locked.payload, shift)


@contextmanager
def _kept(secret: SecretBytes) -> Iterator[SecretBytes]:
    """Wipe a secret when all is over."""
    with secret:
        yield secret


def _ask(arguments: argparse.Namespace, there: _There, becomes: str) -> None:
    segment, locked = there.header.segments[0], there.locked
    place = segment.offset + shift_of(there.header, Window(arguments.offset))
    ask(arguments, locked.payload, (place, locked.size), segment.encryption, becomes)
