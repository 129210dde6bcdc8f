"""`lukshdrfs benchmark`: how fast key derivation and sector ciphers are on this machine, in memory alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from lukshdrfs.cipher import CipherSpec, SectorCipher, check_sector_size
from lukshdrfs.cli.arguments import Subparsers
from lukshdrfs.cli.quantities import milliseconds, number, size
from lukshdrfs.errors import UsageError
from lukshdrfs.luks.keys.kdf_cost import KdfWish, choose_kdf
from lukshdrfs.secret import SecretBytes

HASHES = ("sha1", "sha256", "sha512", "ripemd160", "whirlpool")
KDFS = ("argon2i", "argon2id")
CIPHERS = (
    ("aes-cbc-essiv:sha256", 128),
    ("aes-cbc-essiv:sha256", 256),
    ("aes-xts-plain64", 256),
    ("aes-xts-plain64", 512),
    ("serpent-xts-plain64", 512),
    ("twofish-xts-plain64", 512),
    ("camellia-xts-plain64", 512),
)
SECTOR_SIZES = (512, 4096)
SECOND_MS = 1000
_BUFFER_SIZE = 1 << 20
_CIPHER_SECONDS = 0.2

Row = dict[str, Any]


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "benchmark",
        help="measure key derivation and ciphers on this machine",
        description="Measure key derivation and sector ciphers, in memory alone and on one core.",
    )
    parser.add_argument("-c", "--cipher", metavar="SPEC", help="measure only this cipher, for instance aes-xts-plain64")
    parser.add_argument("-s", "--key-size", type=number, metavar="BITS", help="with this key (512 for xts, else 256)")
    parser.add_argument("--sector-size", type=size, metavar="BYTES", help="and this sector size (512 and 4096)")
    parser.add_argument("--hash", metavar="HASH", help="measure only pbkdf2 with this hash")
    parser.add_argument("--pbkdf", metavar="KDF", help="measure only this KDF: argon2id, argon2i or pbkdf2")
    parser.add_argument(
        "-i", "--iter-time", type=milliseconds, default=2000, metavar="MS", help="time for argon2 (2000)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out: a line as soon as it is measured, or one document at the end."""
    rows: list[Row] = []
    if not arguments.json:
        sys.stdout.write("# In memory alone, without storage; ciphers on one core.\n")
    for row in _all(arguments):
        rows.append(row)
        if not arguments.json:
            sys.stdout.write(f"{_line(row)}\n")
            sys.stdout.flush()
    if arguments.json:
        document = {
            "kdfs": [row for row in rows if "kdf" in row],
            "ciphers": [row for row in rows if "cipher" in row],
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0


def _all(arguments: argparse.Namespace) -> Iterator[Row]:
    yield from _kdfs(arguments)
    yield from _ciphers(arguments)


def _kdfs(arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.cipher is not None and arguments.hash is None and arguments.pbkdf is None:
        return
    if arguments.pbkdf in (None, "pbkdf2"):
        for hash_name in (arguments.hash,) if arguments.hash else ("sha256",) if arguments.pbkdf else HASHES:
            kdf = choose_kdf(KdfWish("pbkdf2", SECOND_MS, hash=hash_name))
            yield {"kdf": "pbkdf2", "hash": hash_name, "iterations_per_second": kdf.iterations}
    if arguments.hash is not None or arguments.pbkdf == "pbkdf2":
        return
    for name in (arguments.pbkdf,) if arguments.pbkdf else KDFS:
        kdf = choose_kdf(KdfWish(name, arguments.iter_time))
        yield {
            "kdf": name,
            "time": kdf.iterations,
            "memory_kib": kdf.memory_kib,
            "cpus": kdf.lanes,
            "milliseconds": arguments.iter_time,
        }


def _ciphers(arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.cipher is None and (arguments.hash is not None or arguments.pbkdf is not None):
        return
    if arguments.cipher is None and arguments.key_size is not None:
        raise UsageError("--key-size is for one cipher; name it with --cipher")
    sector_sizes = SECTOR_SIZES if arguments.sector_size is None else (arguments.sector_size,)
    for sector_size in sector_sizes:
        check_sector_size(sector_size)
    chosen: tuple[tuple[str, int], ...] = CIPHERS
    if arguments.cipher is not None:
        spec = CipherSpec.parse(arguments.cipher)
        usual = 512 if spec.mode == "xts" else 256
        bits = arguments.key_size or min(max(spec.key_sizes) * 8, usual)
        if bits % 8:
            raise UsageError(f"--key-size {bits}: expected a multiple of 8 bits")
        chosen = ((arguments.cipher, bits),)
    for text, bits in chosen:
        for sector_size in sector_sizes:
            yield _measure(CipherSpec.parse(text), bits, sector_size)


def _measure(spec: CipherSpec, key_bits: int, sector_size: int) -> Row:
    with SecretBytes.copy_of(os.urandom(key_bits // 8)) as key, SectorCipher(spec, key, sector_size) as cipher:
        row: Row = {"cipher": str(spec), "key_bits": key_bits, "sector_size": sector_size}
        data = bytearray(os.urandom(_BUFFER_SIZE))
        for way, crypt in (("encryption", cipher.encrypt), ("decryption", cipher.decrypt)):
            done, start = 0, time.perf_counter()
            while (seconds := time.perf_counter() - start) < _CIPHER_SECONDS:
                crypt(data, done >> 9)
                done += _BUFFER_SIZE
            row[f"{way}_mib_per_second"] = round(done / seconds / (1 << 20), 1)
    return row


def _line(row: Row) -> str:
    if row.get("kdf") == "pbkdf2":
        return f"pbkdf2-{row['hash']:<10} {row['iterations_per_second']:>10} iterations per second"
    if "kdf" in row:
        return (
            f"{row['kdf']:<17} {row['time']:>10} passes over {row['memory_kib']} KiB by {row['cpus']} threads "
            f"in {row['milliseconds']} ms"
        )
    return (
        f"{row['cipher']:<22} {row['key_bits']:>4} bits {row['sector_size']:>5} bytes/sector "
        f"{row['encryption_mib_per_second']:>8.1f} MiB/s encryption "
        f"{row['decryption_mib_per_second']:>8.1f} MiB/s decryption"
    )
