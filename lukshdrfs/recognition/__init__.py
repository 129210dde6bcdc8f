"""What bytes are recognised as: libblkid's opinion and our own list, as one list. Decides nothing."""

from lukshdrfs.recognition.signatures import DescriptorSource, Signature, erase, known_signature_of, names_of, recognise

__all__ = [
    "DescriptorSource",
    "Signature",
    "erase",
    "known_signature_of",
    "names_of",
    "recognise",
]
