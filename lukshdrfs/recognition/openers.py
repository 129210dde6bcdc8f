"""What opens something that is recognised and is no LUKS volume in raw bytes."""

from __future__ import annotations

from collections.abc import Iterable

from lukshdrfs.recognition.magics import ARCHIVES, LUKS1_IN_REENCRYPTION
from lukshdrfs.recognition.signatures import Signature

_QEMU = {
    "a qcow image": "qcow",
    "a QED image": "qed",
    "a VMDK image": "vmdk",
    "a VMDK descriptor": "vmdk",
    "a VDI image": "vdi",
    "a VHDX image": "vhdx",
    "a VHD image": "vpc",
    "a Parallels image": "parallels",
    "a Bochs image": "bochs",
    "a cloop image": "cloop",
    "a DMG image": "dmg",
}
"""What qemu-nbd opens, and its name for it."""

_OPENERS = {
    "a qcow2 image": "--payload-format qcow2 opens it",
    "BitLocker": "'cryptsetup open --type bitlk' opens it",
    "cs_fvault2": "'cryptsetup open --type fvault2' opens it",
    LUKS1_IN_REENCRYPTION.what: "let 'cryptsetup reencrypt' finish it first",
    **{magic.what: "unpack it first" for magic in ARCHIVES},
    **{
        name: f"'qemu-nbd --format {driver} --socket PATH' serves it as nbd+unix:///?socket=PATH"
        for name, driver in _QEMU.items()
    },
}


def way_to_open(signatures: Iterable[Signature]) -> str:
    """Return what opens the first of these of which we know that; empty if there is none."""
    return next((_OPENERS[signature.name] for signature in signatures if signature.name in _OPENERS), "")
