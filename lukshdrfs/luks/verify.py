"""
Everything about a header that can be checked without a passphrase, as findings.

A header that cannot be used at all does not get here: parsing refuses it.
"""

from __future__ import annotations

from collections import Counter

from lukshdrfs.errors import HeaderError, UnsupportedFeature
from lukshdrfs.findings import Finding
from lukshdrfs.luks.capabilities import missing_for_segments
from lukshdrfs.luks.luks1.repair import misspelt_hash, repair_luks1
from lukshdrfs.luks.luks2.binary import read_copies
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Stage
from lukshdrfs.luks.luks2.tokens import orphan_tokens
from lukshdrfs.luks.model import STRIPES, Header, Keyslot
from lukshdrfs.sectors import SECTOR

_LEAST_DISTINCT = 170
"""Different byte values in 512 random bytes: 221 on average, with a standard deviation of 5. So few are no chance."""


def verify(header: Header, size: int) -> tuple[Finding, ...]:
    """Check a parsed header; `size` (bytes) is that of the file or device it is from."""
    found = _verify_luks1(header, size) if header.version == 1 else _verify_luks2(header)
    for slot in header.keyslots:
        found += _verify_keyslot(header, slot)
    for digest in header.digests:
        if digest.problem:
            found.append(Finding("error", f"digest {digest.id}", digest.problem))
        if digest.unsupported:
            found.append(Finding("warning", f"digest {digest.id}", digest.unsupported))
    for number, text in missing_for_segments(header):
        found.append(Finding("warning", f"segment {number}", text))
    for token in orphan_tokens(header):
        text = f"it ({token.type}) is bound to no keyslot, and opens nothing"
        found.append(Finding("warning", f"token {token.id}", text))
    if not header.keyslots:
        found.append(Finding("warning", "keyslots", "there is none: only the volume key itself opens the volume"))
    if header.requirements:
        found.append(Finding("warning", "header", f"it requires {', '.join(header.requirements)}"))
    return (*found, *_verify_conversion(header))


def _verify_conversion(header: Header) -> list[Finding]:
    """Say how far a conversion is, or what is wrong with it. Whether it is genuine takes the keys to tell."""
    try:
        state = ReencryptionState.of(header)
    except HeaderError as error:
        return [Finding("error", "conversion", str(error))]
    except UnsupportedFeature as error:
        return [Finding("warning", "conversion", str(error))]
    if state is None:
        return []
    text = {
        Stage.CLEAN: f"it is half-way; 'lukshdrfs {state.mode}' goes on, and so does 'cryptsetup reencrypt'",
        Stage.CRASHED: f"a step was cut off; 'lukshdrfs {state.mode}' recovers that and goes on, 'mount' recovers it",
        Stage.FINISHED: "all data are converted, and the header does not say so; only "
        f"'lukshdrfs {state.mode}' ends it without harm: cryptsetup 2.8 would convert them again",
    }
    return [Finding("warning", "conversion", f"{state.mode}: {text[state.stage]}")]


def _verify_luks1(header: Header, size: int) -> list[Finding]:
    found = [Finding("error", "header", warning) for warning in header.warnings]
    try:
        damages, _ = repair_luks1(header.area, size)
    except HeaderError as error:
        return [*found, Finding("warning", "header", str(error))]
    spelling = misspelt_hash(header.area)
    return found + [Finding("warning" if text in spelling else "error", "header", text) for text in damages]


def _verify_luks2(header: Header) -> list[Finding]:
    copies = read_copies(header.area)
    found = [Finding("error", "copies", problem) for problem in copies.problems]
    first, second = copies.primary, copies.secondary
    if first and second:
        if first.binary.seqid != second.binary.seqid:
            ages = f"{first.binary.seqid} and {second.binary.seqid}"
            found.append(Finding("error", "copies", f"one is older than the other (epochs {ages})"))
        elif first.metadata != second.metadata or _names(first.binary) != _names(second.binary):
            found.append(Finding("error", "copies", "they have the same epoch and differ"))
        else:
            found.append(Finding("note", "copies", f"both are sound and alike (epoch {first.binary.seqid})"))
    return found


def _names(binary: object) -> tuple[str, ...]:
    return tuple(getattr(binary, name) for name in ("uuid", "label", "subsystem"))


def _verify_keyslot(header: Header, slot: Keyslot) -> list[Finding]:
    subject = f"keyslot {slot.id}"
    if slot.problem:
        return [Finding("error", subject, slot.problem)]
    if slot.unsupported:
        unsupported = [Finding("warning", subject, slot.unsupported)]
        return unsupported if slot.af is None else unsupported + _verify_area(header, slot)
    return _verify_area(header, slot)


def _verify_area(header: Header, slot: Keyslot) -> list[Finding]:
    subject = f"keyslot {slot.id}"
    start = slot.area.offset
    material = header.area[start : start + slot.key_size * STRIPES]
    if len(material) < slot.key_size * STRIPES:
        return [Finding("error", subject, "its area is cut off")]
    suspicious = not_random(material)
    if suspicious:
        place = start + suspicious[0] * SECTOR
        share = f"{len(suspicious)} of {len(material) // SECTOR} sectors of its area"
        text = f"{share} are not random, the first at byte {place}: it has been overwritten, and its key is lost"
        return [Finding("error", subject, text)]
    return [Finding("note", subject, f"its area ({len(material)} bytes) looks random, as it should")]


def not_random(material: bytes) -> list[int]:
    """Return the numbers of those 512-byte sectors that cannot be the output of a cipher."""
    sectors = [material[at : at + SECTOR] for at in range(0, len(material) - SECTOR + 1, SECTOR)]
    times = Counter(sectors)
    return [number for number, sector in enumerate(sectors) if len(set(sector)) < _LEAST_DISTINCT or times[sector] > 1]
