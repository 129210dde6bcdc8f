"""Volumes that `create` makes, of every kind, as cryptsetup, QEMU and the kernel's dm-crypt see them."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import qemu
from support.created import SECRETS, SIZE, Created, Kind, create_kind
from support.cryptsetup import LuksFiles, cryptsetup, decrypted, dump, json_metadata, keyslot_of, volume_key
from support.dmcrypt import run_in_guest
from support.mounts import lukshdrfs
from support.tools import qemu10

import lukshdrfs as package

pytestmark = pytest.mark.needs("cryptsetup")

CIPHERS = [
    ("aes-xts-plain64", 512),
    ("aes-xts-plain64", 256),
    ("aes-cbc-essiv:sha256", 256),
    ("serpent-xts-plain64", 512),
    ("twofish-xts-plain64", 256),
    ("camellia-xts-plain64", 512),
    ("aes-cbc-plain64", 128),
]
SECTORS = [512, 1024, 2048, 4096]
KDFS = ["pbkdf2", "argon2id", "argon2i"]
HASHES = ["sha256", "sha512", "sha1", "whirlpool", "blake2b-512"]

LUKS2_KINDS = [
    Kind("luks2", *CIPHERS[n // 3], SECTORS[n % 4], KDFS[n % 3], HASHES[n % 5]) for n in range(3 * len(CIPHERS))
]
"""Every pair of sector size, KDF and hash, and of cipher and KDF; most of cipher and sector size."""
LUKS1_KINDS = [Kind("luks1", *CIPHERS[n % 7], 512, "pbkdf2", HASHES[n % 5]) for n in range(10)]
KINDS = LUKS2_KINDS + LUKS1_KINDS
FOR_THE_KERNEL = [*LUKS2_KINDS[::5], *LUKS1_KINDS[2:5]]
"""Every cipher, every sector size and KDF."""
TO_DECRYPT = [kind for kind in [*LUKS2_KINDS[::4], *LUKS1_KINDS[::5]] if kind.is_aes]


def each(kinds: list[Kind]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: str(kind.id))


Make = Callable[[Kind], Created]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that makes a volume of a kind, once: tests only read it."""
    return functools.cache(lambda kind: create_kind(tmp_path_factory.mktemp("volume"), kind))


def luks2_dump(text: str) -> dict[str, Any]:
    """Return what `luksDump` says: a value for each field, and for each section its objects by number."""
    found: dict[str, Any] = {}
    fields: dict[str, Any] = found
    section: dict[int, Any] = {}
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][a-z ]+:", line):
            section = found.setdefault(line[:-1], {})
        elif number := re.fullmatch(r"  (\d+): (\w+)", line):
            fields = section.setdefault(int(number[1]), {"type": number[2]})
        elif field := re.fullmatch(r"\s*([A-Za-z][\w ]*):\s*(.*?)\s*", line):
            (fields if line.startswith("\t") else found)[field[1]] = field[2]
            last = (fields if line.startswith("\t") else found), field[1]
        elif re.fullmatch(r"\s+[0-9a-f ]+", line):
            last[0][last[1]] += f" {line.strip()}"
    return found


def hexadecimal(text: str) -> str:
    """Return base64 as `info` shows bytes."""
    return base64.b64decode(text).hex()


def as_info_shows(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return keyslots, digests and segments of LUKS2 metadata with the names and units that `info` has."""
    digest_of = {int(slot): int(number) for number, each in metadata["digests"].items() for slot in each["keyslots"]}

    def kdf(found: dict[str, Any]) -> dict[str, Any]:
        if found["type"] == "pbkdf2":
            return {**found, "salt": hexadecimal(found["salt"])}
        cost = {"time": found["time"], "memory_kib": found["memory"], "cpus": found["cpus"]}
        return {"type": found["type"], **cost, "salt": hexadecimal(found["salt"])}

    return {
        "keyslots": [
            {
                "id": int(number),
                "type": slot["type"],
                "key_size": slot["key_size"] * 8,
                "priority": {0: "ignore", 1: "normal", 2: "prefer"}[slot.get("priority", 1)],
                "bound": bool(metadata["digests"][str(digest_of[int(number)])]["segments"]),
                "digest": digest_of[int(number)],
                "kdf": kdf(slot["kdf"]),
                "af": {"hash": slot["af"]["hash"], "stripes": slot["af"]["stripes"]},
                "area": {
                    "offset": int(slot["area"]["offset"]),
                    "size": int(slot["area"]["size"]),
                    "encryption": slot["area"]["encryption"],
                    "key_size": slot["area"]["key_size"] * 8,
                },
                "problem": "",
                "unsupported": "",
            }
            for number, slot in metadata["keyslots"].items()
        ],
        "digests": [
            {
                "id": int(number),
                "type": digest["type"],
                "hash": digest["hash"],
                "iterations": digest["iterations"],
                "salt": hexadecimal(digest["salt"]),
                "digest": hexadecimal(digest["digest"]),
                "keyslots": sorted(map(int, digest["keyslots"])),
                "segments": sorted(map(int, digest["segments"])),
                "problem": "",
                "unsupported": "",
            }
            for number, digest in metadata["digests"].items()
        ],
        "segments": [
            {
                "id": int(number),
                "type": segment["type"],
                "offset": int(segment["offset"]),
                "size": segment["size"],
                "iv_tweak": int(segment["iv_tweak"]),
                "encryption": segment["encryption"],
                "sector_size": segment["sector_size"],
                "flags": [],
                "integrity": "",
            }
            for number, segment in metadata["segments"].items()
        ],
    }


def info(header: Path) -> dict[str, Any]:
    """Return what we say about a header."""
    done = lukshdrfs("info", "--json", header)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@each(LUKS2_KINDS)
def test_luks2_dump_says_what_was_asked_for(kind: Kind, made: Make) -> None:
    """Every field that cryptsetup shows of a LUKS2 header is as it was asked for, and as `info` shows it."""
    header = made(kind).files.header
    shown, ours = luks2_dump(dump(header)), info(header)

    key, area = f"{kind.key_bits} bits", -(-kind.key_bits // 8 * 4000 // 4096) * 4096
    cost = {
        "pbkdf2": {"Hash": kind.hash, "Iterations": "1000"},
        "argon2id": {"Time cost": "4", "Memory": "32", "Threads": "1"},
        "argon2i": {"Time cost": "5", "Memory": "64", "Threads": "2"},
    }[kind.pbkdf]
    salts = [" ".join(re.findall("..", slot["kdf"]["salt"])) for slot in ours["keyslots"]]
    digest = {name: " ".join(re.findall("..", ours["digests"][0][name])) for name in ("salt", "digest")}
    assert len(set(salts)) == 2
    assert shown == {
        "Version": "2",
        "Epoch": str(ours["epoch"]),
        "Metadata area": "16384 [bytes]",
        "Keyslots area": "1048576 [bytes]",
        "UUID": ours["uuid"],
        "Label": "(no label)",
        "Subsystem": "(no subsystem)",
        "Flags": "(no flags)",
        "Data segments": {
            0: {
                "type": "crypt",
                "offset": "0 [bytes]",
                "length": "(whole device)",
                "cipher": kind.cipher,
                "sector": f"{kind.sector_size} [bytes]",
            }
        },
        "Keyslots": {
            number: {
                "type": "luks2",
                "Key": key,
                "Priority": "normal",
                "Cipher": kind.cipher,
                "Cipher key": key,
                "PBKDF": kind.pbkdf,
                **cost,
                "Salt": salts[number],
                "AF stripes": "4000",
                "AF hash": kind.hash,
                "Area offset": f"{32768 + number * area} [bytes]",
                "Area length": f"{area} [bytes]",
                "Digest ID": "0",
            }
            for number in range(2)
        },
        "Tokens": {},
        "Digests": {
            0: {
                "type": "pbkdf2",
                "Hash": kind.hash,
                "Iterations": "100000",
                "Salt": digest["salt"],
                "Digest": digest["digest"],
            }
        },
    }
    described = as_info_shows(json_metadata(header))
    assert {name: ours[name] for name in described} == described


@each(LUKS1_KINDS)
def test_luks1_dump_says_what_was_asked_for(kind: Kind, made: Make) -> None:
    """Every field that cryptsetup shows of a LUKS1 header is as it was asked for, and as `info` shows it."""
    header = made(kind).files.header
    text, ours = dump(header), info(header)
    head, *slots = re.split(r"^Key Slot ", text, flags=re.MULTILINE)
    fields = {
        name: " ".join(value.split())
        for name, value in re.findall(r"^([A-Z].*?):[ \t]*(\S.*(?:\n\s+.*)*)", head, re.MULTILINE)
    }

    name, _, mode = kind.cipher.partition("-")
    digest = ours["digests"][0]
    assert fields == {
        "Version": "1",
        "Cipher name": name,
        "Cipher mode": mode,
        "Hash spec": kind.hash,
        "Payload offset": "0",
        "MK bits": str(kind.key_bits),
        "MK digest": " ".join(re.findall("..", digest["digest"])),
        "MK salt": " ".join(re.findall("..", digest["salt"])),
        "MK iterations": "100000",
        "UUID": ours["uuid"],
    }
    area = -(-kind.key_bits // 8 * 4000 // 4096) * 8
    for number, slot in enumerate(slots):
        if number >= 2:
            assert slot.split() == [f"{number}:", "DISABLED"]
            continue
        mine = ours["keyslots"][number]
        assert " ".join(slot.split()) == " ".join(
            [
                f"{number}: ENABLED Iterations: 1000 Salt:",
                *re.findall("..", mine["kdf"]["salt"]),
                f"Key material offset: {8 + number * area} AF stripes: 4000",
            ]
        )
        assert (mine["area"]["offset"], mine["kdf"]["hash"]) == ((8 + number * area) * 512, kind.hash)
    assert len(slots) == 8


@each([kind for kind in KINDS if kind.is_aes])
def test_cryptsetup_opens_every_keyslot(kind: Kind, made: Make, tmp_path: Path) -> None:
    """Each key opens its own keyslot, no other key any; the volume key is the one that was given."""
    volume = made(kind)
    header = volume.files.header
    wrong = tmp_path / "wrong"
    wrong.write_bytes(SECRETS[0] + b"\n")
    assert [keyslot_of(header, key) for key in (*volume.key_files, wrong)] == [0, 1, None]
    assert volume_key(volume.files) == volume.volume_key


@each(TO_DECRYPT)
def test_cryptsetup_decrypts_what_was_written(kind: Kind, made: Make, tmp_path: Path) -> None:
    """What cryptsetup decrypts with the header is what was written."""
    volume = made(kind)
    files = volume.files
    if kind.type == "luks1":  # it decrypts files by LUKS2 headers alone
        files = LuksFiles(files.payload, tmp_path / "twin.img", files.key_file)
        shutil.copyfile(volume.files.header, files.header)
        cryptsetup("convert", "--type", "luks2", files.header)
    assert decrypted(files) == volume.plain


@pytest.mark.needs("qemu10")
@each([kind for kind in LUKS1_KINDS if kind.is_aes and kind.hash in ("sha1", "sha256", "sha512")])
def test_qemu_reads_with_either_key(kind: Kind, made: Make, tmp_path: Path) -> None:
    """QEMU takes the header beside the payload, opens a keyslot and reads what was written."""
    volume = made(kind)
    options = qemu.detached(volume.files.header, volume.files.payload)
    plain = tmp_path / "plain.img"
    qemu.run(
        qemu10("qemu-img"), "convert", *qemu.luks_secret(volume.files.key_file), "--image-opts", options,
        "-O", "raw", plain,
    )  # fmt: skip
    assert plain.read_bytes() == volume.plain


@pytest.mark.root
@pytest.mark.needs("dmcrypt-vm")
def test_kernel_reads_and_writes_them(made: Make, tmp_path: Path) -> None:
    """With each cipher: cryptsetup opens both keyslots, the kernel reads what we wrote, and we read what it writes."""
    theirs = random.Random(21).randbytes(SIZE)
    (tmp_path / "theirs").write_bytes(theirs)
    for number, kind in enumerate(FOR_THE_KERNEL):
        shutil.copytree(made(kind).files.header.parent, tmp_path / f"{number}")
    run_in_guest(
        tmp_path,
        """
        for folder in [0-9]*; do
            cd $folder
            for key in key second; do
                cryptsetup open -q -v --test-passphrase --key-file $key header.img | grep unlocked >>opened
            done
            cryptsetup luksDump -q --dump-volume-key --volume-key-file found --key-file second header.img >dump
            cryptsetup open --header header.img --key-file second payload.img vol
            sha256sum </dev/mapper/vol >sum
            dd if=../theirs of=/dev/mapper/vol bs=64k conv=fsync 2>errors
            cryptsetup close vol
            cd ..
        done
        """,
    )
    for number, kind in enumerate(FOR_THE_KERNEL):
        folder, volume = tmp_path / f"{number}", made(kind)
        assert (folder / "opened").read_text() == "Key slot 0 unlocked.\nKey slot 1 unlocked.\n", kind.id
        assert (folder / "found").read_bytes() == volume.volume_key, kind.id
        assert (folder / "sum").read_text().split()[0] == hashlib.sha256(volume.plain).hexdigest(), kind.id
        with package.open_volume(
            folder / "payload.img", header=folder / "header.img", passphrase=SECRETS[1], read_only=True
        ) as opened:
            assert bytes(opened.pread(SIZE, offset=0)) == theirs, kind.id
