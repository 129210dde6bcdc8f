"""`lukshdrfs create`: a new volume, its header in a file of its own, on a device, or at the start of the payload."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from lukshdrfs.cipher import CipherSpec
from lukshdrfs.cli.arguments import (
    Parser,
    Subparsers,
    add_backing_chain,
    add_kdf,
    is_standard_input,
    kdf_wish,
    key_bytes,
)
from lukshdrfs.cli.header import checked_uuid
from lukshdrfs.cli.output import output_descriptor
from lukshdrfs.cli.overwriting import HeaderPlace, Overwritten, header_place, overwritten_payload
from lukshdrfs.cli.progress import Progress
from lukshdrfs.cli.quantities import number, size
from lukshdrfs.cli.secrets import SecretSource, new_secret
from lukshdrfs.errors import DeviceError, PayloadError, UsageError
from lukshdrfs.limits import check_file_size
from lukshdrfs.luks import Header, parse_header, unlock
from lukshdrfs.luks.edit import NewKeyslot
from lukshdrfs.luks.hashes import find_hash
from lukshdrfs.luks.kdf_cost import KdfWish
from lukshdrfs.luks.key_material import AREA_ALIGNMENT
from lukshdrfs.luks.keyslots import add_keyslot, check_unchanged, new_keyslot, volume_digest
from lukshdrfs.luks.luks1 import SECTOR as LUKS1_SECTOR_SIZE
from lukshdrfs.luks.luks1_format import HEADER_ALIGNMENT, Luks1Format, format_luks1, header_size
from lukshdrfs.luks.luks2_format import KEYSLOTS_SIZE, METADATA_SIZE, Luks2Format, format_luks2, segment_object
from lukshdrfs.luks.shared import add_payload
from lukshdrfs.payload import (
    FilePayload,
    Payload,
    check_format,
    create_image,
    is_network,
    is_plain,
    new_payload_file,
    open_indirect,
)
from lukshdrfs.secret import SecretBytes
from lukshdrfs.sectors import SECTOR_SIZES, round_down, round_up
from lukshdrfs.volume import (
    create_header_file,
    fill_with_random,
    open_header,
    replace_header_file,
    sync_descriptor,
    write_all,
)
from lukshdrfs.volume.header_lock import header_lock

log = logging.getLogger(__name__)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "create",
        help="make a new volume, with a detached header or an attached one",
        description="Make a header with a new volume key, and with --size the payload, which is filled with random "
        "bytes. The defaults are cryptsetup's. Neither a header nor data that is recognised is overwritten without "
        "--force.",
    )
    parser.add_argument("payload", metavar="PAYLOAD")
    parser.add_argument("--header", metavar="FILE", help="where the header goes; left out: the start of the payload")
    parser.add_argument(
        "--shared-header", metavar="FILE", help="a header that is there: this payload gets a key of its own in it, too"
    )
    parser.add_argument("--payload-name", metavar="NAME", help="with it: what to call this payload (its file's name)")
    parser.add_argument("--first-name", default="first", metavar="NAME", help="with it: what to call the first (first)")
    parser.add_argument("--size", type=size, metavar="N", help="create the payload with this many bytes (K, M, G, T)")
    parser.add_argument("--payload-format", default="raw", metavar="F", help="raw or qcow2 (raw)")
    add_backing_chain(parser)
    parser.add_argument("--type", default="luks2", metavar="T", help="luks2 or luks1 (luks2)")
    parser.add_argument("-c", "--cipher", default="aes-xts-plain64", metavar="SPEC", help="aes-xts-plain64")
    parser.add_argument("-s", "--key-size", type=number, metavar="BITS", help="512 for xts, else 256")
    parser.add_argument(
        "--sector-size", type=size, metavar="BYTES", help="4096 where the payload's size allows (luks2)"
    )
    parser.add_argument("--offset", type=size, metavar="N", help="where the data begin on the payload")
    parser.add_argument("--luks2-metadata-size", type=size, metavar="N", help="of one copy of the metadata (16K)")
    parser.add_argument("--luks2-keyslots-size", type=size, metavar="N", help="set aside for keyslots (16 MiB in all)")
    add_kdf(parser, "of digest, AF splitter and pbkdf2 (sha256)")
    parser.add_argument("--uuid", help="random")
    parser.add_argument("--label", default="")
    parser.add_argument("--subsystem", default="")
    parser.add_argument(
        "--wipe", action=argparse.BooleanOptionalAction, help="fill the payload with random bytes (a new one is)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a header, and data that is recognised")
    parser.add_argument(
        "--keep", metavar="FILE", help="with it: where the copy of an overwritten header goes (beside it)"
    )
    _add_secrets(parser)
    parser.set_defaults(run=run)


def _add_secrets(parser: Parser) -> None:
    parser.add_argument(
        "-d", "--key-file", action="append", default=[], metavar="SRC",
        help="all of a file's bytes are the key; path, fd:N, -; repeatable, each gets a keyslot",
    )  # fmt: skip
    parser.add_argument("--keyfile-offset", type=size, default=0, metavar="BYTES", help="skip these")
    parser.add_argument("-l", "--keyfile-size", type=size, metavar="BYTES", help="use only these many")
    parser.add_argument("--passphrase-file", metavar="SRC", help="the first line, without its newline")
    parser.add_argument("--volume-key-file", metavar="SRC", help="take this volume key; a random one if left out")
    parser.add_argument("-T", "--tries", type=number, default=3, metavar="N", help="times to ask (3)")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out. Whatever it made so far is gone again if it fails."""
    _check(arguments)
    cipher = CipherSpec.parse(arguments.cipher)
    key_size = key_bytes(arguments.key_size, "--key-size") or cipher.key_sizes[-1]
    cipher.check_key_size(key_size)
    version = 1 if arguments.type == "luks1" else 2
    wish = kdf_wish(arguments, version, "sha256")
    wish.check()
    if arguments.shared_header is not None:
        return _share(arguments, cipher, key_size, wish)
    with ExitStack() as held:
        place = None
        if arguments.header:
            _check_header_is_no_payload(arguments)
            place = held.enter_context(header_place(arguments.header, force=arguments.force))
        payload, overwritten = held.enter_context(_payload(arguments))
        created = overwritten is None
        form = _form(arguments, cipher, key_size, payload.size, created=created)
        with _volume_key(arguments, key_size) as volume_key:
            area = (format_luks1 if isinstance(form, Luks1Format) else format_luks2)(form, volume_key)  # type: ignore[arg-type]
            if arguments.header and not Path(arguments.header).is_block_device():
                check_file_size(f"header {arguments.header}", len(area))
            for secret in _secrets(arguments):
                with secret:
                    header = parse_header(area)
                    slot = _new_slot(arguments, header, key_size, wish)
                    area = add_keyslot(header, volume_key, secret, slot)[1].applied_to(area)
        if overwritten:
            overwritten.check_unchanged()  # somebody may have been asked for a passphrase since it was looked at
            overwritten.keep_header(arguments, arguments.payload)
            if place is None:
                overwritten.erase_signatures(payload.write)
        _fill(arguments, payload, form, created=created)
        if place is None:
            payload.write(memoryview(area), 0)
        else:
            _write_header(arguments, place, area)
            if overwritten:
                overwritten.erase_signatures(payload.write)
        payload.flush()
    return 0


def _new_slot(arguments: argparse.Namespace, header: Header, key_size: int, wish: KdfWish) -> NewKeyslot:
    return new_keyslot(
        header,
        key_size,
        wish,
        encryption=arguments.keyslot_cipher,
        area_key_size=key_bytes(arguments.keyslot_key_size, "--keyslot-key-size"),
    )


def _share(arguments: argparse.Namespace, cipher: CipherSpec, key_size: int, wish: KdfWish) -> int:
    """Make a payload with a key of its own in a header that is there, opened by the same passphrase."""
    path = arguments.shared_header
    with open_header(path) as file:
        header = file.header  # it can be edited, and is not locked while somebody is asked
    if header.version == 1:
        raise UsageError(f"header {path} is LUKS1, which is for one payload; convert it to luks2 first")
    name = arguments.payload_name or Path(arguments.payload).stem
    if os.path.realpath(path) == os.path.realpath(arguments.payload) and (arguments.offset or 0) < len(header.area):
        raise UsageError(
            f"payload and header are the same file, and the header takes its first {len(header.area)} bytes"
        )
    with _payload(arguments) as (payload, overwritten):
        created = overwritten is None
        form = _form(arguments, cipher, key_size, payload.size, created=created)
        assert isinstance(form, Luks2Format)
        with _existing_secret(arguments) as secret, _volume_key(arguments, key_size) as volume_key:
            first = unlock(header, volume_digest(header), secret)
            first.volume_key.wipe()  # what matters is that it opens
            opened_by = first.keyslot
            assert opened_by is not None
            slot = _new_slot(arguments, header, key_size, wish)
            if overwritten:
                overwritten.check_unchanged()
                overwritten.keep_header(arguments, arguments.payload)
            _fill(arguments, payload, form, created=created)
            with open_header(path, warn=False) as file:
                check_unchanged(file.header, header, volume_digest(header).id, opened_by)
                edit = add_payload(
                    file.header, volume_key, secret, slot,
                    name=name, segment=segment_object(form), first_name=arguments.first_name, opened_by=opened_by,
                )  # fmt: skip
                file.apply(edit)
        if overwritten:
            overwritten.erase_signatures(payload.write)
        payload.flush()
    return 0


def _existing_secret(arguments: argparse.Namespace) -> SecretBytes:
    """Return the passphrase that opens the header already."""
    if len(arguments.key_file) > 1:
        raise UsageError("with --shared-header, name one key file: the passphrase that opens the header already")
    source = SecretSource(
        arguments.key_file[0] if arguments.key_file else None,
        arguments.keyfile_offset,
        arguments.keyfile_size,
        arguments.passphrase_file,
    )
    return source.read(f"Passphrase for {arguments.shared_header}: ")


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what cannot be, or cannot be together."""
    check_format(arguments.payload, arguments.payload_format, backing_chain=arguments.backing_chain)
    if not is_plain(arguments.payload, arguments.payload_format) and not _detached(arguments):
        raise UsageError("an attached header is for a plain file or device; name a place for it with --header")
    if arguments.type not in ("luks1", "luks2"):
        raise UsageError(f"--type {arguments.type} is not supported; expected luks2 or luks1")
    if arguments.uuid is not None:
        arguments.uuid = checked_uuid(arguments.uuid)
    if arguments.key_file and arguments.passphrase_file is not None:
        raise UsageError("give --key-file or --passphrase-file, not both")
    keys = [*arguments.key_file, arguments.passphrase_file, arguments.volume_key_file]
    if sum(map(is_standard_input, keys)) > 1:
        raise UsageError("standard input can be one key, not several")
    if arguments.header is not None and output_descriptor(arguments.header) is not None:
        raise UsageError(
            f"--header {arguments.header}: a header is made in a file or on a device; name one, and have "
            "'lukshdrfs header backup' write it to standard output"
        )
    _check_shared(arguments)
    if arguments.size == 0:
        raise UsageError("--size 0: the volume would be empty")
    if arguments.type == "luks1":
        _check_luks1(arguments)


def _check_shared(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what does not go together with a header that is there."""
    if arguments.shared_header is not None and (arguments.header or arguments.type == "luks1"):
        raise UsageError("--shared-header is a LUKS2 header that is there; leave out --header and --type")
    if arguments.shared_header is None and arguments.payload_name is not None:
        raise UsageError("--payload-name is for --shared-header")


def _check_luks1(arguments: argparse.Namespace) -> None:
    """Raise UsageError for what LUKS1 does not have."""
    if arguments.label or arguments.subsystem:
        raise UsageError("--label and --subsystem: LUKS1 has neither; leave them out, or take --type luks2")
    if arguments.luks2_metadata_size is not None or arguments.luks2_keyslots_size is not None:
        raise UsageError("--luks2-metadata-size and --luks2-keyslots-size are for --type luks2")
    if arguments.sector_size not in (None, LUKS1_SECTOR_SIZE):
        raise UsageError(f"--sector-size {arguments.sector_size}: LUKS1 has 512 only; take --type luks2")
    arguments.sector_size = LUKS1_SECTOR_SIZE


def _form(
    arguments: argparse.Namespace, cipher: CipherSpec, key_size: int, payload_size: int, *, created: bool
) -> Luks1Format | Luks2Format:
    """Return what the header is to be, after checking that the payload has whole sectors for it."""
    identifier = arguments.uuid or str(uuid4())
    usual_hash = "sha256" if arguments.hash is None else find_hash(arguments.hash).name
    if arguments.type == "luks1":
        if _window(arguments, created=created) is not None:
            raise UsageError("a LUKS1 header cannot say how much of the payload is the volume; take --type luks2")
        offset = _data_offset(arguments, header_size(key_size))
        _sector_size(LUKS1_SECTOR_SIZE, payload_size, offset)
        return Luks1Format(cipher, identifier, usual_hash, offset)
    metadata_size = METADATA_SIZE if arguments.luks2_metadata_size is None else arguments.luks2_metadata_size
    keyslots_size = arguments.luks2_keyslots_size
    if keyslots_size is None:
        # cryptsetup takes no header that reaches past the data's offset, even if it lies elsewhere
        most = 2 * METADATA_SIZE + KEYSLOTS_SIZE
        keyslots_size = min(most, round_down(arguments.offset or most, AREA_ALIGNMENT)) - 2 * metadata_size
    offset = _data_offset(arguments, 2 * metadata_size + keyslots_size)
    window = _window(arguments, created=created)
    end = payload_size if window is None else offset + window
    if end > payload_size:
        raise DeviceError(f"the payload has {payload_size} bytes; the volume would end at byte {end}")
    return Luks2Format(
        cipher,
        _sector_size(arguments.sector_size, end, offset),
        identifier,
        usual_hash,
        arguments.label,
        arguments.subsystem,
        offset,
        window,
        metadata_size,
        keyslots_size,
    )


def _data_offset(arguments: argparse.Namespace, header_size_: int) -> int:
    """Return the byte of the payload at which the data begin: behind an attached header, at 1 MiB steps."""
    if arguments.offset is not None:
        if arguments.offset % LUKS1_SECTOR_SIZE:
            raise UsageError(f"--offset {arguments.offset}: expected a multiple of {LUKS1_SECTOR_SIZE} bytes")
        if not _detached(arguments) and arguments.offset < header_size_:
            raise UsageError(f"--offset {arguments.offset}: the header before it takes {header_size_} bytes")
        return int(arguments.offset)
    return 0 if _detached(arguments) else round_up(header_size_, HEADER_ALIGNMENT)


def _detached(arguments: argparse.Namespace) -> bool:
    return arguments.header is not None or arguments.shared_header is not None


def _sector_size(wanted: int | None, payload_size: int, offset: int) -> int:
    """Return the sector size in bytes, after checking that the payload has whole sectors."""
    if wanted is not None and wanted not in SECTOR_SIZES:
        raise UsageError(f"--sector-size {wanted}: expected {', '.join(map(str, SECTOR_SIZES))}")
    space = payload_size - offset
    sector_size = wanted or (SECTOR_SIZES[0] if space % SECTOR_SIZES[-1] else SECTOR_SIZES[-1])
    if space < sector_size or space % sector_size:
        behind = f" from byte {offset} on" if offset else ""
        raise DeviceError(f"the payload has {max(space, 0)} bytes{behind}, not whole sectors of {sector_size}")
    return sector_size


@contextmanager
def _volume_key(arguments: argparse.Namespace, key_size: int) -> Iterator[SecretBytes]:
    if arguments.volume_key_file is None:
        with SecretBytes.random(key_size) as key:
            yield key
        return
    with SecretSource(volume_key_file=arguments.volume_key_file).read("") as key:
        if len(key) != key_size:
            raise UsageError(
                f"volume key file {arguments.volume_key_file} has {len(key)} bytes, the volume key {key_size}; "
                "see --key-size"
            )
        yield key


def _secrets(arguments: argparse.Namespace) -> Iterator[SecretBytes]:
    """Yield the secrets of the new keyslots, each one the caller's to wipe."""
    sources = [
        SecretSource(key_file, arguments.keyfile_offset, arguments.keyfile_size) for key_file in arguments.key_file
    ] or [_typed_source(arguments)]
    for source in sources:
        yield new_secret(source, f"New passphrase for {arguments.payload}: ")


def _typed_source(arguments: argparse.Namespace) -> SecretSource:
    """Return the source of one passphrase. The volume key, which is read to its end, may have standard input."""
    brings = "the volume key" if is_standard_input(arguments.volume_key_file) else ""
    return SecretSource(passphrase_file=arguments.passphrase_file, tries=arguments.tries, stdin_brings=brings)


def _check_header_is_no_payload(arguments: argparse.Namespace) -> None:
    if os.path.realpath(arguments.header) == os.path.realpath(arguments.payload):
        raise UsageError("header and payload are the same file; leave --header out for an attached header")


@contextmanager
def _payload(arguments: argparse.Namespace) -> Iterator[tuple[Payload, Overwritten | None]]:
    """
    Yield the payload, opened and locked, and the part of it that is overwritten.

    If it is made here, there is no such part, and it goes when something fails.
    """
    name = arguments.payload
    created = not is_network(name) and not os.path.lexists(name)
    if created and arguments.size is None:
        raise DeviceError(f"payload {name} is not there; --size creates it")
    if not created and arguments.size is not None and (arguments.offset is None or not _detached(arguments)):
        raise UsageError(
            f"payload {name} is there already and keeps its size; leave out --size (--offset, --size and a detached "
            "header make a part of it the volume)"
        )
    if not is_plain(name, arguments.payload_format):
        if created:
            with create_image(name, arguments.payload_format, arguments.size) as image:
                yield image, None
            return
        with open_indirect(
            name, arguments.payload_format, read_only=False, backing_chain=arguments.backing_chain
        ) as opened:
            yield opened, _overwritten(arguments, opened)
        return
    if created:
        check_file_size(f"payload {name}", arguments.size)
        with new_payload_file(name, arguments.size) as made:
            yield made, None
        return
    size_ = _window(arguments, created=created)
    window = None if size_ is None else (int(arguments.offset), size_)
    with FilePayload.open(name, read_only=False, window=window) as payload:
        yield payload, _overwritten(arguments, payload)


def _overwritten(arguments: argparse.Namespace, payload: Payload) -> Overwritten:
    """Look at what will be the volume. Raises DeviceError if there is data in it, unless that is forced."""
    start = (arguments.offset or 0) if _detached(arguments) else 0
    if start >= payload.size:
        raise DeviceError(f"payload {payload.name} has {payload.size} bytes; the data would begin at byte {start}")
    header = arguments.shared_header
    header_before = header is not None and os.path.realpath(header) == os.path.realpath(arguments.payload)
    size_ = _window(arguments, created=False)
    if size_ is not None and start + size_ > payload.size:
        raise DeviceError(
            f"payload {payload.name} has {payload.size} bytes; the volume would end at byte {start + size_}"
        )
    overwritten = overwritten_payload(payload, start, size_, header_before=header_before)
    overwritten.refuse(force=arguments.force, wipe=bool(arguments.wipe))
    return overwritten


def _fill(arguments: argparse.Namespace, payload: Payload, form: Luks1Format | Luks2Format, *, created: bool) -> None:
    """Fill the payload, or the window of it that is the volume, if that is asked for or it was made here."""
    thin = not is_plain(arguments.payload, arguments.payload_format)
    if created and not thin if arguments.wipe is None else arguments.wipe:
        window = _window(arguments, created=created)
        # what lies before the data of a detached header is somebody else's, unless all of it was made here
        start = form.data_offset if _detached(arguments) and not created else 0
        _wipe(payload, (start, payload.size - start if window is None else window), created=created)
    elif created and thin:
        sys.stderr.write("the payload is thin: its size shows how much has been written, its tables where\n")
    elif created:
        sys.stderr.write("the payload is sparse: it shows how much of it is used, and that it is not random data\n")


def _window(arguments: argparse.Namespace, *, created: bool) -> int | None:
    """Return how many bytes of an existing payload are to be the volume; None: as far as it goes."""
    return None if created or arguments.size is None else int(arguments.size)


def _wipe(payload: Payload, window: tuple[int, int], *, created: bool) -> None:
    """Fill a part of the payload with random bytes, so that used and unused sectors look alike."""
    offset, size_ = window
    try:
        with Progress(f"filling {payload.name} with random bytes", size_) as progress:
            fill_with_random(payload, offset, size_, progress.show)
    except BaseException:
        if not created:
            log.warning("payload %s is partly overwritten, and no header was made; run create again", payload.name)
        raise


def _write_header(arguments: argparse.Namespace, place: HeaderPlace, area: bytes) -> None:
    """Write the header: a file appears when it is complete, a device is written in place."""
    path, name = place.path, f"header {place.path}"
    if not place.is_device:
        place.make_way(arguments)
        if place.descriptor is None:
            create_header_file(path, area)  # refuses if somebody has made one meanwhile
        else:
            replace_header_file(path, area, place.descriptor)
        return
    descriptor = place.descriptor
    assert descriptor is not None
    device_size = os.lseek(descriptor, 0, os.SEEK_END)
    if device_size < len(area):
        raise PayloadError(f"{name} has {device_size} bytes, a header takes {len(area)}; see --luks2-keyslots-size")
    with header_lock(descriptor, str(path), exclusive=True):
        place.make_way(arguments)
        place.erase_signatures(lambda data, offset: write_all(descriptor, data, offset, name))
        write_all(descriptor, area, 0, name)
        sync_descriptor(descriptor, name)
