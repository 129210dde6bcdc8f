"""Where the ciphertext lies. Knows nothing of ciphers and of LUKS."""

from lukshdrfs.payload.base import Payload
from lukshdrfs.payload.file import FilePayload
from lukshdrfs.payload.nbd.address import is_network
from lukshdrfs.payload.nbd.payload import NbdPayload
from lukshdrfs.payload.opening import Access, PayloadName, new_payload, open_payload
from lukshdrfs.payload.qemu.payload import EnginePayload
from lukshdrfs.payload.writing import sync_descriptor, write_all

__all__ = [
    "Access",
    "EnginePayload",
    "FilePayload",
    "NbdPayload",
    "Payload",
    "PayloadName",
    "is_network",
    "new_payload",
    "open_payload",
    "sync_descriptor",
    "write_all",
]
