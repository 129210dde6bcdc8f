"""A header as a JSON document, and a document as text for people."""

from __future__ import annotations

from typing import Any

from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.errors import LukshdrfsError
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState
from lukshdrfs.luks.luks2.shared import SharedPayload, header_for, shared_payloads
from lukshdrfs.luks.model import Digest, Header, Kdf, Keyslot, Priority, Segment, Token

PRIORITIES = {"ignore": Priority.IGNORE, "normal": Priority.NORMAL, "prefer": Priority.PREFER}
"""By the names that cryptsetup gives them."""


_TELLING_ZEROS = {"payload_offset", "detached", "offset", "digest", "bound"}
"""What is shown to people even if it is 0 or false."""


def describe(header: Header, *, detached: bool) -> dict[str, Any]:
    """Return the header, without the payload."""
    first = header.segments[0]
    digest = header.digest_of_segment(first.id)
    bound = {slot.key_size for slot in header.keyslots if digest and slot.id in digest.keyslots}
    return {
        "type": header.type,
        "uuid": header.uuid,
        "label": header.label,
        "subsystem": header.subsystem,
        "cipher": first.encryption,
        "key_size": max(bound, default=0) * 8,
        "sector_size": first.sector_size,
        "detached": detached,
        "payload_offset": first.offset,
        "epoch": header.seqid,
        "metadata_size": header.metadata_size,
        "keyslots_size": header.keyslots_size,
        "flags": list(header.flags),
        "requirements": list(header.requirements),
        "conversion": _describe_conversion(header),
        "keyslots": describe_keyslots(header),
        "digests": [_describe_digest(digest) for digest in header.digests],
        "segments": [_describe_segment(segment) for segment in header.segments],
        "payloads": [_describe_payload(header, payload) for payload in shared_payloads(header)],
        "tokens": [_describe_token(token) for token in header.tokens],
        "warnings": list(header.warnings),
    }


def _describe_conversion(header: Header) -> dict[str, Any]:
    """Return how far a conversion in place is, as the header alone tells it; empty without one."""
    try:
        state = ReencryptionState.of(header)
    except LukshdrfsError as error:
        return {"problem": str(error)}
    if state is None:
        return {}
    protection = state.protection
    return {
        "mode": state.mode,
        "state": state.stage.value,
        "direction": "forward" if state.forward else "backward",
        "resilience": protection.type,
        "hash": protection.hash,
        "block_size": protection.block_size,
        "data_shift": protection.shift,
        "parts": [{"as": part.side.value, "start": part.start, "size": part.size} for part in state.parts],
        "before": _describe_segment(state.previous),
        "after": _describe_segment(state.final),
    }


def describe_keyslots(header: Header) -> list[dict[str, Any]]:
    """Return the keyslots that are in use, by number."""
    return [_describe_keyslot(header, slot) for slot in header.keyslots]


def _describe_kdf(kdf: Kdf) -> dict[str, Any]:
    if kdf.type == "pbkdf2":
        cost: dict[str, Any] = {"hash": kdf.hash, "iterations": kdf.iterations}
    else:
        cost = {"time": kdf.iterations, "memory_kib": kdf.memory_kib, "cpus": kdf.lanes}
    return {"type": kdf.type, **cost, "salt": kdf.salt.hex()}


def _describe_keyslot(header: Header, slot: Keyslot) -> dict[str, Any]:
    digest = header.digest_of_keyslot(slot.id)
    names = {int(value): name for name, value in PRIORITIES.items()}
    return {
        "id": slot.id,
        "type": slot.type,
        "key_size": slot.key_size * 8,
        "priority": names.get(slot.priority, "unknown"),
        "bound": digest is not None and bool(digest.segments),
        "digest": None if digest is None else digest.id,
        "kdf": _describe_kdf(slot.kdf) if slot.kdf else None,
        "af": {"hash": slot.af.hash, "stripes": slot.af.stripes} if slot.af else None,
        "area": {
            "offset": slot.area.offset,
            "size": slot.area.size,
            "encryption": slot.area.encryption,
            "key_size": slot.area.key_size * 8,
        },
        "problem": slot.problem,
        "unsupported": slot.unsupported,
    }


def _describe_digest(digest: Digest) -> dict[str, Any]:
    return {
        "id": digest.id,
        "type": digest.type,
        "hash": digest.hash,
        "iterations": digest.iterations,
        "salt": digest.salt.hex(),
        "digest": digest.digest.hex(),
        "keyslots": sorted(digest.keyslots),
        "segments": sorted(digest.segments),
        "problem": digest.problem,
        "unsupported": digest.unsupported,
    }


def _describe_segment(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "type": segment.type,
        "offset": segment.offset,
        "size": "dynamic" if segment.size is None else segment.size,
        "iv_tweak": segment.iv_tweak,
        "encryption": segment.encryption,
        "sector_size": segment.sector_size,
        "flags": list(segment.flags),
        "integrity": segment.integrity,
    }


def _describe_payload(header: Header, payload: SharedPayload) -> dict[str, Any]:
    """Return a payload of a shared header."""
    return {
        "name": payload.name,
        "uuid": payload.uuid,
        "cipher": payload.segment.encryption,
        "sector_size": payload.segment.sector_size,
        "size": "dynamic" if payload.segment.size is None else payload.segment.size,
        "payload_offset": payload.segment.offset,
        "keyslots": sorted(slot.id for slot in header_for(header, payload).keyslots),
        "first": payload.is_first,
    }


def _describe_token(token: Token) -> dict[str, Any]:
    """Return a token with all that its program keeps in it."""
    content = {key: value for key, value in token.content.items() if key not in ("type", "keyslots")}
    return {"id": token.id, "type": token.type, "keyslots": list(token.keyslots), "content": content}


def lines(document: dict[str, Any], indent: str = "") -> list[str]:
    """Return a document as text for people: a line for each value, deeper ones further to the right."""
    found = []
    for key, value in document.items():
        if isinstance(value, dict):
            found += [f"{indent}{printable(key)}:", *lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found.append(f"{indent}{printable(key)}:")
            for number, item in enumerate(value):
                rest = {name: part for name, part in item.items() if name != "id"}
                found += [f"{indent}  {item.get('id', number)}:", *lines(rest, indent + "    ")]
        elif value or (key in _TELLING_ZEROS and value is not None):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append(f"{indent}{printable(key)}: {printable(shown)}")
    return found
