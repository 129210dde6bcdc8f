"""Where the ciphertext lies. Knows nothing of ciphers and of LUKS."""

from lukshdrfs.payload.base import Payload
from lukshdrfs.payload.engine import is_network
from lukshdrfs.payload.engine_payload import EnginePayload
from lukshdrfs.payload.file import FilePayload
from lukshdrfs.payload.signatures import known_signature

__all__ = ["EnginePayload", "FilePayload", "Payload", "is_network", "known_signature"]
