"""`lukshdrfs header verify`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lukshdrfs.cli.arguments import (
    pin,
    secret_source,
)
from lukshdrfs.cli.one_header import header_name, unlocked
from lukshdrfs.cli.terminal.logs import printable
from lukshdrfs.errors import HeaderError, LukshdrfsError, UnsupportedFeature
from lukshdrfs.findings import Finding
from lukshdrfs.headers import read_header, source_descriptor
from lukshdrfs.luks.model import Header
from lukshdrfs.luks.verify import verify
from lukshdrfs.payload import FilePayload
from lukshdrfs.secret import SecretBytes
from lukshdrfs.volume import LockedVolume, plaintext_signature


def run_verify(arguments: argparse.Namespace) -> int:
    name = header_name(arguments)
    findings: list[Finding] = []
    document: dict[str, Any] = {"header": name, "type": None, "uuid": None}
    unsupported = False
    try:
        header = read_header(name, pin(arguments), warn=False)
    except HeaderError as error:
        findings.append(Finding("error", "header", str(error)))
        unsupported = isinstance(error, UnsupportedFeature)
    else:
        document |= {"type": header.type, "uuid": header.uuid}
        findings += verify(header, max(_size(name), len(header.area)))
        if arguments.header and arguments.payload:
            findings += _verify_payload(header, arguments.payload)
        findings += _verify_secret(header, arguments)
    sound = not any(finding.severity == "error" for finding in findings)
    document |= {
        "sound": None if unsupported else sound,
        "findings": [
            {"severity": finding.severity, "subject": finding.subject, "text": finding.text} for finding in findings
        ],
    }
    if arguments.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.severity:<7}  {finding.subject}: {printable(finding.text)}\n")
        sys.stdout.write("sound\n" if sound else "not supported\n" if unsupported else "damaged\n")
    return 0 if sound else HeaderError.exit_code


def _size(name: str) -> int:
    """Return the bytes of a file; 0 for what has no size of its own."""
    return 0 if source_descriptor(name) is not None else Path(name).stat().st_size


def _verify_secret(header: Header, arguments: argparse.Namespace) -> list[Finding]:
    if not arguments.ask and not secret_source(arguments).named:
        return []
    with unlocked(header, arguments) as key:
        subject = "volume key" if key.keyslot is None else f"keyslot {key.keyslot}"
        found = [Finding("note", subject, f"the key fits digest {key.digest}")]
        if arguments.payload:
            found += _verify_pair(header, arguments, key.volume_key)
    return found


def _verify_pair(header: Header, arguments: argparse.Namespace, volume_key: SecretBytes) -> list[Finding]:
    """Look whether something is recognised in the plaintext: then header and payload belong together."""
    detached = bool(arguments.header)
    if not detached and header.segments[0].offset < len(header.area):
        return []  # it is the header file itself
    try:
        with (
            FilePayload.open(arguments.payload, read_only=True, locked=False) as payload,
            LockedVolume(header, payload, detached=detached).unlock_with_volume_key(volume_key) as volume,
        ):
            found = plaintext_signature(volume)
    except LukshdrfsError as error:
        return [Finding("error", "payload", str(error))]
    if found:
        return [Finding("note", "pair", f"the plaintext holds {found}: header and payload belong together")]
    text = "nothing is recognised in the plaintext: the volume is empty, or this is not its header"
    return [Finding("warning", "pair", text)]


def _verify_payload(header: Header, name: str) -> list[Finding]:
    try:
        with FilePayload.open(name, read_only=True) as payload:
            size = LockedVolume(header, payload, detached=True).size
    except LukshdrfsError as error:
        return [Finding("error", "payload", str(error))]
    return [Finding("note", "payload", f"it has room for the segments: {size} bytes of plaintext")]
