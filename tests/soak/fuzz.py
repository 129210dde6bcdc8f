"""
Feeds parsers with what a coverage-guided fuzzer makes up: only results and the project's own errors come out.

    fuzz.py TARGET -runs=10000000 [OPTIONS OF LIBFUZZER]

TARGET: `luks1` (a LUKS1 header's 592 bytes), `luks2` (a LUKS2 header's JSON area, with right checksums), `binary` (the
first 512 bytes of both copies of a LUKS2 header, with right checksums), `shared` (the tokens of a header for several
payloads), `reencryption` (the metadata of a conversion, and steps from there), `json` (the JSON reader alone),
`options` (mount's -o), `area` (keyslots, and what is in their areas).
Takes `pip install atheris`. Bounds are libFuzzer's: -timeout=2 -rss_limit_mb=400. NBD answers are
`tests/native/nbd_answers.c`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import atheris
from cryptography.hazmat.primitives.hashes import SHA256, Hash

with atheris.instrument_imports(
    include=["lukshdrfs.luks", "lukshdrfs.volume.moving", "lukshdrfs.cli.commands.mount.fstab_options"]
):
    from lukshdrfs.cli.commands.mount.fstab_options import apply_options, split_options
    from lukshdrfs.errors import LukshdrfsError, UsageError
    from lukshdrfs.luks.header import header_extent, parse_header
    from lukshdrfs.luks.keys.hashes import find_hash
    from lukshdrfs.luks.keys.kdf import KdfLimits
    from lukshdrfs.luks.keys.unlock import unlock
    from lukshdrfs.luks.luks2.binary import BINARY, CHECKSUM_OFFSET
    from lukshdrfs.luks.luks2.reencryption.edits import finished, renumbered, step_parts, with_parts
    from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState, Side, Stage
    from lukshdrfs.luks.luks2.shared import header_for, shared_payloads
    from lukshdrfs.luks.luks2.strict_json import load
    from lukshdrfs.secret import SecretBytes
    from lukshdrfs.volume.moving.sides import plaintext_size
    from lukshdrfs.volume.moving.zone import next_zone

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(Path(__file__).parents[1]))

from support.luks2_edit import metadata, with_json_area  # noqa: E402 - the path is set above


def _unpacked(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.header.img.gz").read_bytes())


LUKS1 = _unpacked("luks1-aes-cbc-essiv-128")
LUKS2 = _unpacked("luks2-pbkdf2-5000")
JSON_START, COPY = 4096, int.from_bytes(LUKS2[8:16], "big")
SIZE = 1 << 34
"""Bytes of the file that a header pretends to be in: large enough for whatever it says."""
LIMITS = KdfLimits(memory_kib=1024, work_kib=2048, iterations=5000, lanes=2)
"""What a keyslot may ask for: the KDF's own time is not what is bounded here."""


def luks1(data: bytes) -> None:
    """Parse a LUKS1 header."""
    head = data[:592].ljust(592, b"\0")
    header_extent(head + LUKS1[592:4096])
    parse_header(head + LUKS1[592:])


def luks2(data: bytes) -> None:
    """Parse LUKS2 metadata."""
    header = with_json_area(LUKS2[: 2 * COPY], data[: COPY - JSON_START])
    header_extent(header)
    parse_header(header, SIZE)


def binary(data: bytes) -> None:
    """Parse both binary headers of a LUKS2 header, and choose between the copies."""
    heads = data[:1024].ljust(1024, b"\0")
    header = bytearray(heads[:512] + LUKS2[512:COPY] + heads[512:] + LUKS2[COPY + 512 : 2 * COPY])
    for offset in (COPY, 0):  # the first copy may say that it reaches into the second
        _seal(header, offset)
    header_extent(bytes(header))
    parse_header(bytes(header), SIZE)


def _seal(header: bytearray, offset: int) -> None:
    """Put the checksum of a copy right, whatever else its binary header says, as far as it has one."""
    fields = BINARY.unpack_from(header, offset)
    with contextlib.suppress(LukshdrfsError):
        algorithm = find_hash(fields[5].partition(b"\0")[0].decode("utf-8", "surrogateescape")).algorithm
        digest = Hash(algorithm or SHA256())
        at = offset + CHECKSUM_OFFSET
        header[at : at + 64] = bytes(64)
        digest.update(bytes(header[offset : offset + min(fields[2], len(header))]))
        header[at : at + 64] = digest.finalize().ljust(64, b"\0")


def reencryption(data: bytes) -> None:
    """Take the state of a conversion, and steps from there: each has to be read as it was written."""
    document = load(data[: COPY - JSON_START] + b"\0")
    header = with_json_area(LUKS2[: 2 * COPY], json.dumps(document).encode()[: COPY - JSON_START])
    state = ReencryptionState.of(parse_header(header, SIZE))
    if state is None:
        return
    size = plaintext_size(state, SIZE)
    for _ in range(4):
        zone = next_zone(state, size, 1 << 20)
        if state.stage is Stage.CRASHED or zone is None:
            return
        for side in (Side.HOT, Side.NEW):
            state = renumbered(replace(state, parts=step_parts(state, size, zone.start, zone.end, side)))
            document = with_parts(document, state, state.parts)
            changed = with_json_area(LUKS2[: 2 * COPY], json.dumps(document).encode()[: COPY - JSON_START])
            if ReencryptionState.of(parse_header(changed, SIZE)) != state:
                raise AssertionError("a step is not read as it was written")
    finished(document, state)


def shared(data: bytes) -> None:
    """Read the tokens that say which payloads a header is for."""
    tokens = load(b'{"tokens":' + data[:4096] + b"}\0")
    whole = {**metadata(LUKS2), "tokens": tokens["tokens"]}
    header = parse_header(with_json_area(LUKS2[: 2 * COPY], json.dumps(whole).encode()[: COPY - JSON_START]), SIZE)
    for payload in shared_payloads(header):
        header_for(header, payload)


def area(data: bytes) -> None:
    """Unlock with keyslots as they come, and an area filled with what comes."""
    text, _, content = data.partition(b"\0")
    keyslots = load(b'{"keyslots":' + text + b"}\0")["keyslots"]
    whole = {**metadata(LUKS2), "keyslots": keyslots}
    header = bytearray(with_json_area(LUKS2, json.dumps(whole).encode()[: COPY - JSON_START]))
    header[2 * COPY : 2 * COPY + len(content)] = content
    parsed = parse_header(bytes(header), SIZE)
    for digest in parsed.digests:
        with SecretBytes.copy_of(b"x") as passphrase:
            unlock(parsed, digest, passphrase, limits=LIMITS)


def read_json(data: bytes) -> None:
    """Read JSON as headers have it."""
    load(data + b"\0")  # an area ends with one, unless it is full


def options(data: bytes) -> None:
    """Read mount's options."""
    text = data.decode("utf-8", "surrogateescape")
    split_options(text)
    apply_options(argparse.Namespace(kernel_options=[], header=None), [text])


SHARED = (
    b'{"0":{"type":"lukshdrfs-payload","keyslots":[],"name":"a","uuid":"b","digest":"0"},'
    b'"1":{"type":"lukshdrfs-payload","keyslots":[],"name":"c","uuid":"d","digest":"0","segment":{"type":"crypt",'
    b'"offset":"0","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}}}'
)
KEYSLOTS = json.dumps({
    number: {**slot, "kdf": {**slot["kdf"], "iterations": 1000}} for number, slot in metadata(LUKS2)["keyslots"].items()
}).encode()  # fmt: skip
TARGETS: dict[str, tuple[Callable[[bytes], None], type[Exception], list[bytes]]] = {
    "luks1": (luks1, LukshdrfsError, [LUKS1[:592]]),
    "luks2": (luks2, LukshdrfsError, [
        LUKS2[JSON_START:COPY].rstrip(b"\0"),
        *(json.dumps(metadata(_unpacked(name))).encode() for name in ("luks2-tokens", "luks2-reencrypt-half")),
    ]),
    "reencryption": (reencryption, LukshdrfsError, [
        json.dumps(metadata(_unpacked(name))).encode()
        for name in ("luks2-reencrypt-init", "luks2-reencrypt-half", "luks2-encrypt-half", "luks2-decrypt-half")
    ]),
    "binary": (binary, LukshdrfsError, [LUKS2[:512] + LUKS2[COPY : COPY + 512]]),
    "area": (area, LukshdrfsError, [KEYSLOTS]),
    "shared": (shared, LukshdrfsError, [SHARED]),
    "json": (read_json, LukshdrfsError, [LUKS2[JSON_START:COPY].rstrip(b"\0"), b'{"a":[1,-2.5e3,"\\u0041",null]}']),
    "options": (options, UsageError, [b"ro,header=/a\\,b,keyfile=/k,offset=1M,umask=077,x-systemd.automount,uid=1000"]),
}  # fmt: skip


def main() -> None:
    """Fuzz one target."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        raise SystemExit(__doc__)
    work, refusal, seeds = TARGETS[name]
    corpus = Path(f"corpus-{name}")
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)

    def one_input(data: bytes) -> None:
        with contextlib.suppress(refusal):
            work(data)

    atheris.Setup([sys.argv[0], "-timeout=2", "-rss_limit_mb=400", *sys.argv[1:], str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
