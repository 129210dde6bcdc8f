"""Where the ciphertext lies. Knows nothing of ciphers and of LUKS."""

from lukshdrfs.payload.address import is_network
from lukshdrfs.payload.base import Payload, PayloadFunctions
from lukshdrfs.payload.engine_payload import EnginePayload
from lukshdrfs.payload.file import FilePayload
from lukshdrfs.payload.formats import check_format, create_image, is_plain, open_indirect
from lukshdrfs.payload.nbd import NbdPayload
from lukshdrfs.payload.new_file import new_payload_file
from lukshdrfs.payload.signatures import DescriptorSource, Signature, erase, known_signature_of, names_of, recognise

__all__ = [
    "DescriptorSource",
    "EnginePayload",
    "FilePayload",
    "NbdPayload",
    "Payload",
    "PayloadFunctions",
    "Signature",
    "check_format",
    "create_image",
    "erase",
    "is_network",
    "is_plain",
    "known_signature_of",
    "names_of",
    "new_payload_file",
    "open_indirect",
    "recognise",
]
