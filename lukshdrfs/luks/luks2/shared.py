"""
One LUKS2 header for several payloads, each with a volume key of its own.

One key on several payloads would show which of their sectors are equal. So each further payload has its own key: a
digest that is bound to no segment, keyslots of that digest ("unbound" ones to cryptsetup), and a token that says which
payload it is for and what its segment is like. The first payload stays what it was: to cryptsetup, the header is its.

    token: {"type": "lukshdrfs-payload", "keyslots": [], "name": "…", "uuid": "…", "digest": "1", "segment": {…}}

`segment` is an object as in `segments`; the first payload's token has none, and its digest is that of segment 0. A
second kind of token, `lukshdrfs-passphrase`, lists the keyslots that one passphrase opens.
Source: LUKS2 specification, section 3.5 (tokens are free to hold what their program needs; unknown ones are kept).
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from lukshdrfs.errors import HeaderError, UsageError
from lukshdrfs.luks.edit import HeaderEdit
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT, NewKeyslot
from lukshdrfs.luks.luks2.binary import BinaryHeader, choose_copy
from lukshdrfs.luks.luks2.edit import commit, editable_metadata, put_keyslot
from lukshdrfs.luks.luks2.layout import LABEL_SIZE
from lukshdrfs.luks.luks2.objects import check_label, new_digest
from lukshdrfs.luks.luks2.parse import parse_segments
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.luks2.validity import check_metadata
from lukshdrfs.luks.model import Header, Segment
from lukshdrfs.secret import SecretBytes

PAYLOAD_TOKEN = "lukshdrfs-payload"  # noqa: S105 - a type's name
PASSPHRASE_TOKEN = "lukshdrfs-passphrase"  # noqa: S105 - a type's name


@dataclass(frozen=True, slots=True)
class SharedPayload:
    """A payload that a shared header is for."""

    name: str
    uuid: str
    digest: int
    """Number of the digest of its volume key."""
    segment: Segment
    is_first: bool
    """Whether it is the payload that the header is for to every other program."""
    segment_object: Json = dataclasses.field(hash=False, default_factory=dict)
    """As it stands in the metadata."""


def shared_payloads(header: Header) -> tuple[SharedPayload, ...]:
    """
    Return the payloads of a shared header, none for a header that is not shared.

    One whose last keyslot is gone, and its digest with it, is not among them. Raises HeaderError if a token is damaged.
    """
    tokens = [token for token in header.tokens if token.type == PAYLOAD_TOKEN]
    every = [_payload(header, token.id, token.content) for token in tokens]
    found = [payload for payload in every if payload is not None]
    names = [payload.name for payload in found]
    if len(set(names)) != len(names):
        raise HeaderError("two payloads of the shared header have the same name")
    return tuple(found)


def _payload(header: Header, token: int, content: Any) -> SharedPayload | None:
    where = f"token {token} of the shared header"
    name, uuid, digest = content.get("name"), content.get("uuid"), content.get("digest")
    if not isinstance(name, str) or not name or len(name.encode("utf-8", "replace")) > LABEL_SIZE:
        raise HeaderError(f"{where}: 'name' is not a payload's name")
    if not isinstance(uuid, str) or not isinstance(digest, str) or not digest.isascii() or not digest.isdecimal():
        raise HeaderError(f"{where}: 'uuid' or 'digest' is missing or wrong")
    number = int(digest[:20])
    known = next((candidate for candidate in header.digests if candidate.id == number), None)
    if known is None:
        return None
    if "segment" not in content:
        return SharedPayload(name, uuid, number, header.segments[0], is_first=True)
    segment = content["segment"]
    try:
        # the checks of the metadata's own segments, on a header that has just this one
        check_metadata(_metadata_of(header, segment, number, []), header.metadata_size - 4096)
        (parsed,) = parse_segments({"segments": {"0": segment}})
    except HeaderError as error:
        raise HeaderError(f"{where}: {error}") from None
    return SharedPayload(name, uuid, number, parsed, is_first=False, segment_object=segment)


def header_for(header: Header, payload: SharedPayload) -> Header:
    """Return the header as it would be if it were this payload's alone; areas and numbers of keyslots stay."""
    digest = next(digest for digest in header.digests if digest.id == payload.digest)
    return dataclasses.replace(
        header,
        uuid=payload.uuid,
        label=payload.name,
        segments=(dataclasses.replace(payload.segment, id=0),),
        digests=(dataclasses.replace(digest, segments=frozenset({0})),),
        keyslots=tuple(slot for slot in header.keyslots if slot.id in digest.keyslots),
        tokens=(),
    )


def choose_payload(header: Header, name: str | None, path: str) -> SharedPayload | None:
    """
    Return which payload of a header is meant: by its name, or by the path's last part, with or without its ending.

    None for a header that is not shared. Raises UsageError if that does not tell.
    """
    payloads = shared_payloads(header)
    if not payloads:
        if name is not None:
            raise UsageError(f"--payload-name {name}: the header is one payload's alone")
        return None
    base = os.path.basename(path)  # noqa: PTH119 - a name as it came from the command line
    wanted = {name} if name is not None else {base, os.path.splitext(base)[0]}  # noqa: PTH122
    found = [payload for payload in payloads if payload.name in wanted]
    if len(found) == 1:
        return found[0]
    known = ", ".join(payload.name for payload in payloads)
    asked = f"--payload-name {name} is none of them" if name is not None else "say which with --payload-name"
    raise UsageError(f"the header is for several payloads ({known}), each with its own key; {asked}")


def add_payload(
    header: Header,
    volume_key: SecretBytes,
    passphrase: SecretBytes,
    slot: NewKeyslot,
    *,
    name: str,
    segment: Json,
    first_name: str,
    opened_by: int,
) -> HeaderEdit:
    """
    Return the edit that makes a header be for another payload, too.

    `segment` is an object of the metadata. `first_name` is the first payload's, if it has none yet. `opened_by` is the
    keyslot that the passphrase opens already.

    Raises UsageError for a name that is taken or too long, HeaderError if there is no room.
    """
    check_label(name, "payload name")
    check_label(first_name, "payload name")
    taken = {payload.name for payload in shared_payloads(header)}
    if not name or name in (taken or {first_name}):
        raise UsageError(f"--payload-name {name}: the header has a payload of that name")
    metadata = editable_metadata(header)
    tokens, digests = metadata["tokens"], metadata["digests"]
    if not taken:
        first = next(digest.id for digest in header.digests if 0 in digest.segments)
        common = {"type": PAYLOAD_TOKEN, "keyslots": []}
        _put(tokens, {**common, "name": first_name, "uuid": header.uuid, "digest": str(first)})
    digest = _put(digests, new_digest(slot.hash, volume_key, frozenset()))
    _put(
        tokens,
        {
            "type": PAYLOAD_TOKEN,
            "keyslots": [],
            "name": name,
            "uuid": str(uuid4()),
            "digest": digest,
            "segment": segment,
        },
    )
    number, material = put_keyslot(header, metadata, volume_key, passphrase, slot, digest=int(digest))
    group = _group_of(tokens, opened_by)
    if group is None:
        group = tokens[_put(tokens, {"type": PASSPHRASE_TOKEN, "keyslots": [str(opened_by)]})]
    group["keyslots"].append(str(number))
    return HeaderEdit(((material,),)).then(commit(header, metadata))


def same_passphrase(header: Header, keyslot: int) -> tuple[int, ...]:
    """Return the keyslots that the passphrase of one opens as well, that one first."""
    for token in header.tokens:
        if token.type == PASSPHRASE_TOKEN and keyslot in token.keyslots:
            return (keyslot, *sorted(set(token.keyslots) - {keyslot}))
    return (keyslot,)


def group_keyslots(header: Header, keyslots: list[int]) -> HeaderEdit:
    """Return the edit that notes that one passphrase opens these keyslots."""
    metadata = editable_metadata(header)
    _put(metadata["tokens"], {"type": PASSPHRASE_TOKEN, "keyslots": [str(number) for number in keyslots]})
    return commit(header, metadata)


def exported(header: Header, payload: SharedPayload) -> bytes:
    """Return a plain LUKS2 header for one payload: cryptsetup opens it."""
    metadata = choose_copy(header.area)[0].metadata
    bound = {str(number) for number in header_for(header, payload).digests[0].keyslots}
    keyslots = {name: slot for name, slot in metadata["keyslots"].items() if name in bound}
    segment = payload.segment_object or metadata["segments"]["0"]
    alone = _metadata_of(header, segment, payload.digest, sorted(keyslots, key=int)) | {"keyslots": keyslots}
    binary = BinaryHeader(header.metadata_size, 1, payload.name, payload.uuid, header.subsystem)
    areas = bytearray(os.urandom(header.keyslots_size))
    start = 2 * header.metadata_size
    for slot in keyslots.values():
        offset, size = int(slot["area"]["offset"]), int(slot["area"]["size"])
        areas[offset - start : offset - start + size] = header.area[offset : offset + size]
    assert len(areas) % AREA_ALIGNMENT == 0
    return binary.written(alone, secondary=False) + binary.written(alone, secondary=True) + bytes(areas)


def _metadata_of(header: Header, segment: Any, digest: int, keyslots: list[str]) -> Json:
    """Return metadata with one segment, its digest, and no keyslots yet."""
    metadata = choose_copy(header.area)[0].metadata
    bound = next(value for name, value in metadata["digests"].items() if int(name) == digest)
    return {
        "keyslots": {},
        "tokens": {},
        "segments": {"0": segment},
        "digests": {"0": {**bound, "keyslots": keyslots, "segments": ["0"]}},
        "config": metadata["config"],
    }


def _put(objects: Json, value: Json) -> str:
    """Add an object under the first free number, and return that."""
    number = next(str(number) for number in range(len(objects) + 1) if str(number) not in objects)
    objects[number] = value
    return number


def _group_of(tokens: Json, keyslot: int) -> Json | None:
    """Return the token that has a keyslot among those which one passphrase opens."""
    for token in tokens.values():
        if token["type"] == PASSPHRASE_TOKEN and str(keyslot) in token["keyslots"]:
            assert isinstance(token, dict)
            return token
    return None
