"""
Changes of a LUKS2 header.

New key material is on the storage before the metadata name it, and old material is overwritten only when they no
longer do. Of the metadata's two copies, the one that is not in use is written first; so one is always whole, and it
says what was there before or what is there now. What the metadata have beyond what is known here stays in them.
Sources: LUKS2 specification, sections 2.2 (the copies) and 3 (metadata); cryptsetup, lib/luks2/luks2_keyslot.c,
luks2_keyslot_luks2.c and luks2_json_metadata.c.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lukshdrfs.errors import HeaderError, NoUsableKeyslot, UnsupportedFeature, UsageError
from lukshdrfs.luks.edit import HeaderEdit, Write, wiping
from lukshdrfs.luks.keys.material import AREA_ALIGNMENT, NewKeyslot, material_size, seal
from lukshdrfs.luks.luks2.binary import BinaryHeader, choose_copy, read_copies
from lukshdrfs.luks.luks2.layout import BINARY_SIZE
from lukshdrfs.luks.luks2.objects import check_label, keyslot_object
from lukshdrfs.luks.luks2.requirements import is_reencrypt_candidate
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.model import STRIPES, Header, Priority
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import round_up

MAX_KEYSLOTS = 32
"""cryptsetup, `LUKS2_KEYSLOTS_MAX`."""


def check_editable(header: Header) -> None:
    """Raise UnsupportedFeature if the header asks its editors for more than is implemented."""
    if any(is_reencrypt_candidate(name) for name in header.requirements):
        raise UnsupportedFeature(
            "the volume is half-way through a conversion, and its header is not changed before that is over; the "
            "command that began it ('info' names it) goes on with it"
        )
    if header.requirements:
        names = ", ".join(header.requirements)
        raise UnsupportedFeature(f"the header requires {names}, which is not supported; it is not changed")


def add_keyslot(
    header: Header,
    volume_key: SecretBytes,
    passphrase: SecretBytes,
    slot: NewKeyslot,
    *,
    digest: int,
    number: int | None = None,
) -> tuple[int, HeaderEdit]:
    """
    Return the number of a new keyslot, and the edit that makes it.

    `digest` is the number of the digest that the key is of; `number` asks for a certain keyslot.
    Raises UsageError if that is in use or none is free, HeaderError if there is no room.
    """
    metadata = editable_metadata(header)
    number, material = put_keyslot(header, metadata, volume_key, passphrase, slot, digest=digest, number=number)
    return number, HeaderEdit(((material,),)).then(commit(header, metadata))


def put_keyslot(
    header: Header,
    metadata: Json,
    volume_key: SecretBytes,
    passphrase: SecretBytes,
    slot: NewKeyslot,
    *,
    digest: int,
    number: int | None = None,
) -> tuple[int, Write]:
    """Put a new keyslot into the metadata; return its number, and what is to be written before they are committed."""
    number = _free_number(header, number)
    offset, material = _sealed(metadata, volume_key, passphrase, slot)
    keyslot = keyslot_object(slot, len(volume_key), offset, len(material))
    if slot.priority is not None and slot.priority != Priority.NORMAL:
        keyslot["priority"] = int(slot.priority)
    metadata["keyslots"][str(number)] = keyslot
    _member(metadata["digests"], digest)["keyslots"].append(str(number))
    return number, Write(offset, material)


def change_keyslot(
    header: Header,
    number: int,
    volume_key: SecretBytes,
    passphrase: SecretBytes,
    slot: NewKeyslot,
    *,
    in_place: bool = False,
) -> HeaderEdit:
    """
    Return the edit by which a keyslot takes another passphrase: a new area first, then the metadata, then the old one.

    Where there is no room for a second area, and `in_place` says so, the keyslot's own is overwritten, together with
    the copy of the metadata that is not in use, as cryptsetup overwrites it (lib/setup.c,
    `crypt_keyslot_change_by_passphrase`). Raises HeaderError if there is no room and it does not.
    """
    metadata = editable_metadata(header)
    old = _member(metadata["keyslots"], number)
    old_offset, old_size = int(old["area"]["offset"]), int(old["area"]["size"])
    overwrite = False
    try:
        offset, size = _free_area(metadata, needed := material_size(len(volume_key))), needed
    except HeaderError:
        if not in_place:
            raise HeaderError(
                f"the header has no room for a second area of keyslot {number}; --in-place overwrites its own, "
                "or remove another keyslot first"
            ) from None
        offset, size, overwrite = old_offset, old_size, True
        if size < len(volume_key) * STRIPES:
            raise HeaderError(f"keyslot {number}: its area of {size} bytes holds no key of this size") from None
    material = seal(volume_key, passphrase, slot)[:size]
    new = {**old, **keyslot_object(slot, len(volume_key), offset, size)}
    if slot.priority is not None:
        _set_priority(new, slot.priority)
    old.clear()
    old.update(new)
    if overwrite:
        first, second = commit(header, metadata).steps
        return HeaderEdit(((Write(offset, material), *first), second), in_place=True)
    edit = HeaderEdit(((Write(offset, material),),)).then(commit(header, metadata))
    return edit.then(wiping(old_offset, old_size))


def remove_keyslot(header: Header, number: int) -> HeaderEdit:
    """Return the edit that overwrites a keyslot's material and takes it out of the metadata."""
    metadata = editable_metadata(header)
    area = _member(metadata["keyslots"], number)["area"]
    metadata["keyslots"] = {name: slot for name, slot in metadata["keyslots"].items() if int(name) != number}
    for owner in (*metadata["digests"].values(), *metadata["tokens"].values()):
        owner["keyslots"] = [name for name in owner["keyslots"] if int(name) != number]
    # a digest of nothing is dropped, as cryptsetup does (`LUKS2_digest_erase_unused`)
    metadata["digests"] = {
        name: digest for name, digest in metadata["digests"].items() if digest["keyslots"] or digest["segments"]
    }
    return wiping(int(area["offset"]), int(area["size"])).then(commit(header, metadata))


def set_priority(header: Header, number: int, priority: Priority) -> HeaderEdit:
    """Return the edit that sets when a keyslot is tried."""
    metadata = editable_metadata(header)
    _set_priority(_member(metadata["keyslots"], number), priority)
    return commit(header, metadata)


def set_names(
    header: Header, *, label: str | None = None, subsystem: str | None = None, uuid: str | None = None
) -> HeaderEdit:
    """Return the edit that gives the volume other names. Raises UsageError for what does not fit."""
    changes: dict[str, Any] = {}
    for what, text in (("label", label), ("subsystem", subsystem)):
        if text is not None:
            check_label(text, what)
            changes[what] = text
    if uuid is not None:
        changes["uuid"] = uuid
    return commit(header, editable_metadata(header), **changes)


def rewrite_damaged_copy(header: Header) -> HeaderEdit:
    """Return the edit that makes both copies alike again: what is wrong is replaced by the copy that counts."""
    copies = read_copies(header.area)
    good = copies.chosen
    if good is None:
        raise HeaderError("neither copy of the header is valid")
    secondary = not good.binary.secondary
    write = Write(good.binary.hdr_size if secondary else 0, good.binary.written(good.metadata, secondary=secondary))
    return HeaderEdit(((write,),))


def editable_metadata(header: Header) -> Json:
    """Return the metadata that count, for changing."""
    check_editable(header)
    return choose_copy(header.area)[0].metadata


def commit(header: Header, metadata: Json, **changes: Any) -> HeaderEdit:
    """Return the writing of both copies, the one that counts now last."""
    current = choose_copy(header.area)[0].binary
    binary: BinaryHeader = dataclasses.replace(current, seqid=current.seqid + 1, **changes)
    copies = {
        secondary: Write(binary.hdr_size if secondary else 0, binary.written(metadata, secondary=secondary))
        for secondary in (False, True)
    }
    return HeaderEdit(((copies[not current.secondary],), (copies[current.secondary],)))


def _member(objects: Json, number: int) -> Json:
    """Return an object by its number, which JSON has as text."""
    for name, value in objects.items():
        if int(name) == number and isinstance(value, dict):
            return value
    raise NoUsableKeyslot(f"keyslot {number} is not in use")


def _free_number(header: Header, wanted: int | None) -> int:
    used = {slot.id for slot in header.keyslots}
    if wanted is None:
        wanted = next((number for number in range(MAX_KEYSLOTS) if number not in used), None)
        if wanted is None:
            raise UsageError(f"all {MAX_KEYSLOTS} keyslots are in use; remove one first")
    if wanted >= MAX_KEYSLOTS:
        raise UsageError(f"there is no keyslot {wanted}; they are numbered 0 to {MAX_KEYSLOTS - 1}")
    if wanted in used:
        raise UsageError(f"keyslot {wanted} is in use; take another, or change or remove it")
    return wanted


def _sealed(metadata: Json, volume_key: SecretBytes, passphrase: SecretBytes, slot: NewKeyslot) -> tuple[int, bytes]:
    """Return where a new area is, and what is to lie there."""
    material = seal(volume_key, passphrase, slot)
    return _free_area(metadata, len(material)), material


def _free_area(metadata: Json, size: int) -> int:
    """Return the offset of the first gap of `size` bytes between the areas (cryptsetup, `LUKS2_find_area_gap`)."""
    config = metadata["config"]
    start = 2 * (int(config["json_size"]) + BINARY_SIZE)
    end = start + int(config["keyslots_size"])
    taken = [(int(slot["area"]["offset"]), int(slot["area"]["size"])) for slot in metadata["keyslots"].values()]
    for offset, length in sorted(taken):
        if offset - start >= size:
            break
        start = max(start, round_up(offset + length, AREA_ALIGNMENT))
    if start + size > end:
        raise HeaderError(f"the header has no room for {size} more bytes of key material; remove a keyslot first")
    return start


def _set_priority(keyslot: Json, priority: int) -> None:
    if priority == Priority.NORMAL:
        keyslot.pop("priority", None)
    else:
        keyslot["priority"] = int(priority)
