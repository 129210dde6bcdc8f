"""Where the ciphertext lies. Knows nothing of ciphers and of LUKS."""

from lukshdrfs.payload.base import Payload
from lukshdrfs.payload.file import FilePayload
from lukshdrfs.payload.signatures import known_signature

__all__ = ["FilePayload", "Payload", "known_signature"]
