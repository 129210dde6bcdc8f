"""
The objects of LUKS2 metadata as JSON, from the model: the inverse of `parse`.

Source: LUKS2 specification, section 3.
"""

from __future__ import annotations

import base64
import os

from lukshdrfs.errors import UsageError
from lukshdrfs.luks.keys.hashes import find_hash
from lukshdrfs.luks.keys.kdf import DIGEST_ITERATIONS, pbkdf2_into
from lukshdrfs.luks.keys.material import NewKeyslot
from lukshdrfs.luks.luks2.layout import BINARY_SIZE, LABEL_SIZE
from lukshdrfs.luks.luks2.strict_json import Json
from lukshdrfs.luks.model import SALT_SIZE, STRIPES, Digest, Kdf
from lukshdrfs.secret import SecretBytes


def base64_text(data: bytes | memoryview) -> str:
    """Return bytes as the metadata hold them."""
    return base64.b64encode(data).decode("ascii")


def metadata_of(segment: Json, digest: Json, keyslots: Json, *, metadata_size: int, keyslots_size: int) -> Json:
    """Return the metadata of a volume of one segment and one key; sizes in bytes, of a copy and of all keyslots."""
    return {
        "keyslots": keyslots,
        "tokens": {},
        "segments": {"0": segment},
        "digests": {"0": digest},
        "config": {"json_size": str(metadata_size - BINARY_SIZE), "keyslots_size": str(keyslots_size)},
    }


def segment_object(encryption: str, sector_size: int, offset: int, size: int | None) -> Json:
    """Return an encrypted segment, whose IVs count from 0; offset and size in bytes, None: as far as it goes."""
    return {
        "type": "crypt",
        "offset": str(offset),
        "size": "dynamic" if size is None else str(size),
        "iv_tweak": "0",
        "encryption": encryption,
        "sector_size": sector_size,
    }


def digest_object(digest: Digest) -> Json:
    """Return a digest as the metadata have it."""
    return {
        "type": "pbkdf2",
        "keyslots": [str(number) for number in sorted(digest.keyslots)],
        "segments": [str(number) for number in sorted(digest.segments)],
        "hash": digest.hash,
        "iterations": digest.iterations,
        "salt": base64_text(digest.salt),
        "digest": base64_text(digest.digest),
    }


def new_digest(hash_name: str, volume_key: SecretBytes, segments: frozenset[int]) -> Json:
    """Return a new digest of a key, without keyslots, bound to segments of these numbers."""
    salt = os.urandom(SALT_SIZE)
    digest = SecretBytes(find_hash(hash_name).digest_size)
    pbkdf2_into(digest, volume_key, salt, DIGEST_ITERATIONS, hash_name)
    return digest_object(
        Digest(
            id=0,
            type="pbkdf2",
            hash=hash_name,
            iterations=DIGEST_ITERATIONS,
            salt=salt,
            digest=bytes(digest.view),
            keyslots=frozenset(),
            segments=segments,
        )
    )


def keyslot_object(slot: NewKeyslot, key_size: int, offset: int, size: int) -> Json:
    """Return a keyslot for a key of `key_size` bytes, whose area is `size` bytes at `offset` of the header."""
    return {
        "type": "luks2",
        "key_size": key_size,
        "af": {"type": "luks1", "stripes": STRIPES, "hash": slot.hash},
        "area": {
            "type": "raw",
            "offset": str(offset),
            "size": str(size),
            "encryption": str(slot.encryption),
            "key_size": slot.area_key_size,
        },
        "kdf": kdf_object(slot.kdf),
    }


def kdf_object(kdf: Kdf) -> Json:
    """Return a KDF as the metadata have it."""
    salt = base64_text(kdf.salt)
    if kdf.type == "pbkdf2":
        return {"type": "pbkdf2", "hash": kdf.hash, "iterations": kdf.iterations, "salt": salt}
    return {
        "type": kdf.type,
        "time": kdf.iterations,
        "memory": kdf.memory_kib,
        "cpus": kdf.lanes,
        "salt": salt,
    }


def check_label(text: str, what: str) -> None:
    """Raise UsageError for a label or subsystem that a header cannot hold."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {text[:60]!r} is not text") from None
    if len(data) > LABEL_SIZE or b"\0" in data:
        raise UsageError(f"{what} {text[:60]!r} does not fit: at most {LABEL_SIZE} bytes, none of them NUL")
