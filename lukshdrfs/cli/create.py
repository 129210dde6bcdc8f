"""`lukshdrfs create`: a new volume, its header in a file of its own."""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.cli.arguments import Subparsers, add_secrets, number, secret_source, size
from lukshdrfs.cli.secrets import ask_twice
from lukshdrfs.errors import DeviceError, InUse, PayloadError, UsageError
from lukshdrfs.luks.kdf_cost import KdfWish, choose_kdf
from lukshdrfs.luks.luks1 import SECTOR as LUKS1_SECTOR_SIZE
from lukshdrfs.luks.luks1_format import Luks1Format, format_luks1
from lukshdrfs.luks.luks2_format import Luks2Format, format_luks2
from lukshdrfs.payload import FilePayload, known_signature
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR_SIZES

log = logging.getLogger(__name__)

WIPE_STEP = 4 * 1024 * 1024


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser("create", help="make a new volume with a detached header")
    parser.add_argument("payload", metavar="PAYLOAD")
    parser.add_argument("--header", required=True, metavar="FILE", help="where the header goes; must not exist")
    parser.add_argument("--size", type=size, metavar="N", help="create the payload with this many bytes (K, M, G, T)")
    parser.add_argument("--type", default="luks2", metavar="T", help="luks2 or luks1 (luks2)")
    parser.add_argument("-c", "--cipher", default="aes-xts-plain64", help="aes-xts-plain64")
    parser.add_argument("-s", "--key-size", type=number, metavar="BITS", help="512 for xts, else 256")
    parser.add_argument(
        "--sector-size", type=number, metavar="BYTES", help="4096 where the payload's size allows (luks2)"
    )
    parser.add_argument("--hash", default="sha256", help="of digest, AF splitter and pbkdf2 (sha256)")
    parser.add_argument("--pbkdf", metavar="KDF", help="argon2id, argon2i or pbkdf2 (argon2id; luks1: pbkdf2)")
    parser.add_argument("--pbkdf-memory", type=number, metavar="KIB")
    parser.add_argument("--pbkdf-parallel", type=number, metavar="N")
    parser.add_argument("--pbkdf-force-iterations", type=number, metavar="N")
    parser.add_argument("-i", "--iter-time", type=number, default=2000, metavar="MS", help="time to unlock (2000)")
    parser.add_argument("--uuid", help="random")
    parser.add_argument("--label", default="")
    parser.add_argument("--subsystem", default="")
    parser.add_argument("--wipe", action=argparse.BooleanOptionalAction, help="fill the payload with random bytes")
    parser.add_argument("--force", action="store_true", help="overwrite a header, and data that is recognised")
    add_secrets(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out. Whatever it made so far is gone again if it fails."""
    _check_type(arguments)
    if os.path.realpath(arguments.header) == os.path.realpath(arguments.payload):
        raise UsageError("header and payload are the same file")
    cipher = CipherSpec.parse(arguments.cipher)
    key_size = _key_size(cipher, arguments.key_size)
    identifier = _uuid(arguments.uuid)
    header_path = Path(os.path.realpath(arguments.header))  # a link stays one
    _check_header_path(header_path, force=arguments.force)
    wish = KdfWish(
        arguments.pbkdf or ("argon2id" if arguments.type == "luks2" else "pbkdf2"),
        arguments.iter_time,
        arguments.pbkdf_memory,
        arguments.pbkdf_parallel,
        arguments.pbkdf_force_iterations,
        arguments.hash,
    )
    with _payload(arguments) as (payload, created):
        sector_size = _sector_size(arguments.sector_size, payload.size)
        kdf = choose_kdf(wish)
        source = secret_source(argparse.Namespace(**{**vars(arguments), "header": None}))
        if source.volume_key_file is not None:
            raise UsageError("--volume-key-file: create makes a new volume key")
        with (
            ask_twice(source, f"New passphrase for {arguments.payload}: ") as passphrase,
            SecretBytes.random(key_size) as volume_key,
        ):
            if not len(passphrase):
                raise UsageError("an empty passphrase protects nothing; is the key file or standard input empty?")
            if arguments.type == "luks1":
                header = format_luks1(Luks1Format(cipher, kdf, identifier), volume_key, passphrase)
            else:
                form = Luks2Format(
                    cipher, sector_size, kdf, identifier, arguments.hash, arguments.label, arguments.subsystem
                )
                header = format_luks2(form, volume_key, passphrase)
        _prepare_payload(payload, wipe=created if arguments.wipe is None else arguments.wipe, created=created)
        _write_header(header_path, header, replace=arguments.force)
    return 0


def _check_type(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a type that there is not, and for what LUKS1 does not have."""
    if arguments.type not in ("luks1", "luks2"):
        raise UsageError(f"--type {arguments.type} is not supported; expected luks2 or luks1")
    if arguments.type == "luks2":
        return
    if arguments.label or arguments.subsystem:
        raise UsageError("--label and --subsystem: LUKS1 has neither; leave them out, or take --type luks2")
    if arguments.sector_size not in (None, LUKS1_SECTOR_SIZE):
        raise UsageError(f"--sector-size {arguments.sector_size}: LUKS1 has 512 only; take --type luks2")
    arguments.sector_size = LUKS1_SECTOR_SIZE


def _key_size(cipher: CipherSpec, bits: int | None) -> int:
    """Return the volume key's size in bytes; cryptsetup's default is 256 bits, twice that for XTS."""
    if bits is None:
        return cipher.key_sizes[-1]
    if bits % 8:
        raise UsageError(f"--key-size {bits}: expected a multiple of 8 bits")
    cipher.check_key_size(bits // 8)
    return bits // 8


def _uuid(text: str | None) -> str:
    try:
        return str(uuid.uuid4() if text is None else uuid.UUID(text))
    except ValueError:
        raise UsageError(f"--uuid {text}: not a UUID") from None


def _sector_size(wanted: int | None, payload_size: int) -> int:
    """Return the sector size in bytes, after checking that the payload has whole sectors."""
    if wanted is not None and wanted not in SECTOR_SIZES:
        raise UsageError(f"--sector-size {wanted}: expected {', '.join(map(str, SECTOR_SIZES))}")
    best = SECTOR_SIZES[-1] if payload_size % SECTOR_SIZES[-1] == 0 else SECTOR_SIZES[0]
    sector_size = wanted or best
    if payload_size < sector_size or payload_size % sector_size:
        raise DeviceError(f"the payload has {payload_size} bytes, not whole sectors of {sector_size}")
    return sector_size


def _check_header_path(path: Path, *, force: bool) -> None:
    if not path.parent.is_dir():
        raise DeviceError(f"header {path}: the directory {path.parent} is not there")
    if not path.exists():
        return
    if not path.is_file():
        raise DeviceError(f"header {path} is not a regular file; create makes headers in files of their own")
    if not force:
        raise DeviceError(f"header {path} is there already; --force replaces it, and what only it opens is lost")
    log.warning("header %s is replaced; a volume that only it opens is lost", path)


@contextmanager
def _payload(arguments: argparse.Namespace) -> Iterator[tuple[FilePayload, bool]]:
    """Yield the payload, opened and locked, and whether it was made here; if so, it goes when something fails."""
    name = arguments.payload
    created = not os.path.lexists(name)
    if created and arguments.size is None:
        raise DeviceError(f"payload {name} is not there; --size creates it")
    if not created and arguments.size is not None:
        raise UsageError(f"payload {name} is there already and keeps its size; leave out --size")
    try:
        if created:
            _create_payload(name, arguments.size)
        else:
            _refuse_known_data(name, force=arguments.force)
        with FilePayload.open(name, read_only=False) as payload:
            yield payload, created
    except BaseException:
        if created:
            Path(name).unlink(missing_ok=True)
        raise


def _create_payload(name: str, size_: int) -> None:
    try:
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.ftruncate(descriptor, size_)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DeviceError(f"payload {name}: {os.strerror(error.errno or 0)}") from None


def _refuse_known_data(name: str, *, force: bool) -> None:
    if not stat.S_ISREG(mode := os.stat(name).st_mode) and not stat.S_ISBLK(mode):  # noqa: PTH116
        return  # opening it says what is wrong
    found = known_signature(name)
    if not found:
        return
    if not force:
        raise DeviceError(f"payload {name} holds data ({found}); --force makes it unreadable")
    log.warning("payload %s: its data (%s) will be unreadable", name, found)


def _prepare_payload(payload: FilePayload, *, wipe: bool, created: bool) -> None:
    if wipe:
        _wipe(payload)
    elif created:
        sys.stderr.write("the payload is sparse: it shows how much of it is used, and that it is not random data\n")


def _wipe(payload: FilePayload) -> None:
    """Fill the payload with random bytes, so that used and unused sectors look alike."""
    progress = sys.stderr.isatty()
    for offset in range(0, payload.size, WIPE_STEP):
        payload.write(memoryview(os.urandom(min(WIPE_STEP, payload.size - offset))), offset)
        if progress:
            sys.stderr.write(f"\rfilling {payload.name} with random bytes: {offset * 100 // payload.size} %")
    payload.flush()
    if progress:
        sys.stderr.write("\r\033[K")


def _write_header(path: Path, header: bytes, *, replace: bool) -> None:
    """Write a header file that is complete and on its storage before its name appears."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)  # tempfile makes it with mode 0600
            try:
                file.write(header)
                file.flush()
                os.fsync(file.fileno())
                _give_name(temporary, path, replace=replace)
            finally:
                temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise PayloadError(f"header {path}: {os.strerror(error.errno or 0)}", error.errno or 0) from None


def _give_name(temporary: Path, path: Path, *, replace: bool) -> None:
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, this replaces nothing
    except FileExistsError:
        raise InUse(f"header {path} was made by somebody else meanwhile") from None
    except OSError as error:
        if path.exists():
            raise
        log.debug("no hard links here (%s); renaming instead", error)
        temporary.rename(path)
