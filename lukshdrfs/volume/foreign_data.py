"""
What is recognised where a volume is, or should be.

The key cannot tell that a payload is another header's, but what lies on it often can: ciphertext has no signature. So
whoever is about to write to a volume asks here first.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lukshdrfs.errors import DeviceError, LukshdrfsError
from lukshdrfs.payload import Payload
from lukshdrfs.payload.qemu.payload import EnginePayload
from lukshdrfs.recognition import Signature, known_signature_of, names_of, recognise
from lukshdrfs.recognition.openers import way_to_open
from lukshdrfs.volume.volume import Volume

log = logging.getLogger(__name__)

_UUID_OFFSET, _UUID_SIZE = 168, 40
"""Of both versions (LUKS1 specification, figure 1; LUKS2 specification, figure 1)."""
_MOST_PARTS = 8


def plaintext_signature(volume: Volume) -> str:
    """
    Return what the plaintext of a volume holds (`ext4`, `gpt`, …), empty if nothing is recognised.

    Raises PayloadError, and DeviceError if libblkid is not installed.
    """
    return known_signature_of(volume.size, volume.read_into)


@dataclass(frozen=True, slots=True)
class PassOver:
    """What may be passed over, because the user says so."""

    force: bool = False
    """Everything that is recognised."""
    raw: bool = False
    """The payload's bytes are the volume's, whatever image they look like."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a header says of a payload."""

    uuid: str
    """The volume's."""
    detached: bool
    beside_data: bool
    """Whether the header is read from the payload's own file all the same, where it lies before the data."""
    parts: tuple[tuple[int, int], ...]
    """Where there should be ciphertext: offsets and sizes in bytes."""


def check_raw(payload: Payload, pass_over: PassOver) -> None:
    """
    Raise DeviceError if a payload is an image or an archive, which gives nonsense even to who only reads.

    What is passed over is in the log, in a line.
    """
    if isinstance(payload, EnginePayload):
        return  # it has been decoded already
    images = [one for one in _recognised(payload, 0, payload.size) if one.kind == "image"]
    if not images:
        return
    what, way = names_of(images), way_to_open(images)
    if not (pass_over.force or pass_over.raw):
        raise DeviceError(
            f"payload {payload.name} is {what}, not the raw bytes of a volume{f'; {way}' if way else ''} "
            "(--payload-format raw takes it as it is)"
        )
    log.warning("payload %s is %s; its bytes are taken as they are", payload.name, what)


def check_place(payload: Payload, claim: Claim, pass_over: PassOver) -> None:
    """
    Raise DeviceError if something else is recognised where a volume's ciphertext should be: writing would destroy it.

    What is passed over is in the log, in a line.
    """
    content = _content(payload, claim)
    if not content:
        return
    what = names_of(content)
    if not (pass_over.force or payload.read_only):
        raise DeviceError(
            f"payload {payload.name} holds {what} where ciphertext should be, and writing would destroy it: is the "
            "header another volume's? --read-only to look at it, --force to write all the same"
        )
    log.warning("payload %s holds %s where ciphertext should be", payload.name, what)


def _content(payload: Payload, claim: Claim) -> list[Signature]:
    """Return what is recognised where the volume's data should be, and what reaches over them."""
    found: list[Signature] = []
    for start, size in claim.parts[:_MOST_PARTS]:
        found += _recognised(payload, start, size)
    if claim.detached and (0, payload.size) not in claim.parts[:_MOST_PARTS]:  # else it has been looked at
        # what begins at byte 0 and is no partition table reaches over the data, wherever they begin
        whole = _recognised(payload, 0, payload.size)
        found += [one for one in whole if one.kind != "table" and not _is_own_header(payload, one, claim)]
    if not isinstance(payload, EnginePayload):
        found = [one for one in found if one.kind != "image"]  # that is for `check_raw`
    return list(dict.fromkeys(found))


def _recognised(payload: Payload, start: int, size: int) -> tuple[Signature, ...]:
    try:
        return recognise(payload, start, size)
    except LukshdrfsError as error:  # a payload that is damaged there, or no libblkid: no reason to keep anybody out
        log.warning("payload %s: whether something else is on it cannot be told: %s", payload.name, error)
        return ()


def _is_own_header(payload: Payload, signature: Signature, claim: Claim) -> bool:
    """Whether it is of the volume's own header before its data: the detached one is a copy of it, or shared."""
    if not signature.is_luks or signature.offset >= min(start for start, _ in claim.parts):
        return False
    if claim.beside_data:
        return True
    field = bytearray(min(_UUID_SIZE, max(0, payload.size - signature.offset - _UUID_OFFSET)))
    payload.read_into(memoryview(field), signature.offset + _UUID_OFFSET)
    return field.partition(b"\0")[0].decode("ascii", "replace").lower() == claim.uuid.lower()
