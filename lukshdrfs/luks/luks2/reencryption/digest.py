"""
What vouches for a reencryption's metadata: a digest of them and both volume keys, which takes these to make.

Without it, a forged header could have a program decrypt a volume "half-way through a decryption" (CVE-2021-4122).
Source: LUKS2 On-Disk Format 1.1.4, section 4.9.2; cryptsetup 2.8, lib/luks2/luks2_reencrypt_digest.c.
"""

from __future__ import annotations

from lukshdrfs.errors import HeaderError, UnsupportedFeature, WrongKey
from lukshdrfs.luks.keys.kdf import KdfLimits
from lukshdrfs.luks.keys.material import verify_digest
from lukshdrfs.luks.luks2.objects import new_digest
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.model import Segment
from lukshdrfs.secret import SecretBytes

_LONGEST_TEXT = 64


def metadata_message(state: ReencryptionState, old_key: SecretBytes | None, new_key: SecretBytes | None) -> SecretBytes:
    """
    Return the bytes that the metadata digest is of. A key is needed for each side that is encrypted.

    Texts are bare, numbers big-endian. Raises HeaderError for a text that is too long.
    """
    parts: list[bytes | memoryview] = [b"v%d" % state.version]
    if state.old_digest is not None:
        assert old_key is not None
        parts.append(old_key.view)
    if state.new_digest is not None and not state.keeps_key:
        assert new_key is not None
        parts.append(new_key.view)
    protection = state.protection
    parts += [_text(state.mode), _text("forward" if state.forward else "backward"), _text(protection.type)]
    parts += [_uint64(protection.offset), _uint64(protection.size)]
    if protection.hash:
        parts += [_text(protection.hash), protection.block_size.to_bytes(4, "big")]
    if protection.shift:
        parts.append(_uint64(protection.shift))
    for segment in (state.previous, state.final, state.moved):
        if segment is not None:
            parts += _segment(segment)
    message = SecretBytes(sum(map(len, parts)))
    at = 0
    for part in parts:
        message.view[at : at + len(part)] = part
        at += len(part)
    return message


def _segment(segment: Segment) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = [_text(segment.type), _uint64(segment.offset)]
    parts.append(b"dynamic" if segment.size is None else _uint64(segment.size))
    if segment.type == "crypt":
        parts += [_uint64(segment.iv_tweak), _text(segment.encryption), segment.sector_size.to_bytes(4, "big")]
    return parts


def _text(text: str) -> bytes:
    data = text.encode("utf-8", errors="surrogateescape")
    if len(data) > _LONGEST_TEXT:
        raise HeaderError(f"the header's reencryption has a text of {len(data)} bytes: {text[:20]!r}…")
    return data


def _uint64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def verify_metadata(
    state: ReencryptionState, old_key: SecretBytes | None, new_key: SecretBytes | None, limits: KdfLimits
) -> None:
    """
    Raise HeaderError unless the metadata are what whoever knows the keys has made, UnsupportedFeature if none vouches.

    Nothing that the metadata say may be relied on before.
    """
    if state.metadata_digest is None:
        raise UnsupportedFeature(
            "nothing vouches for the header's reencryption, which a program of before 2022 has begun; "
            "'cryptsetup repair' asks whether it is genuine, and mends that"
        )
    with metadata_message(state, old_key, new_key) as message:
        try:
            verify_digest(state.metadata_digest, message, limits)
        except WrongKey:
            raise HeaderError(
                "the header's reencryption is forged or damaged: its metadata are not what the volume keys vouch for; "
                "nothing of the payload is touched"
            ) from None


def new_metadata_digest(
    state: ReencryptionState, old_key: SecretBytes | None, new_key: SecretBytes | None, hash_name: str
) -> Json:
    """Return a digest that vouches for the metadata, bound to the keyslot of the protection."""
    with metadata_message(state, old_key, new_key) as message:
        return {**new_digest(hash_name, message, frozenset()), "keyslots": [str(state.keyslot)]}
