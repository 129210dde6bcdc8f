"""Conversions of payloads that are no plain files, or only a part of one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.conversions import CHEAP, SMALL
from support.cryptsetup import cryptsetup
from support.luks2_edit import metadata, with_metadata
from support.mounts import Argument, is_mounted, lukshdrfs
from support.nbd import address, qemu_nbd
from support.tools import program
from support.volumes import MIB

from lukshdrfs import open_volume

pytestmark = pytest.mark.needs("cryptsetup")

PLAIN = bytes(range(256)) * (2 * MIB // 256)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return a key file."""
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    return path


def convert(mode: str, *arguments: Argument) -> None:
    """Run a conversion to its end."""
    done = lukshdrfs(mode, *(() if mode == "decrypt" else CHEAP), *(SMALL if mode == "encrypt" else ()), *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("qemu-img", "qemu-storage-daemon")
def test_qcow2(tmp_path: Path, key: Path) -> None:
    """The data in an image are converted, and the image stays one."""
    raw, image, header = tmp_path / "raw", tmp_path / "disk.qcow2", tmp_path / "header"
    raw.write_bytes(PLAIN)
    subprocess.run([program("qemu-img"), "convert", "-O", "qcow2", raw, image], check=True)
    named: list[Argument] = ["--payload-format", "qcow2", "--header", header, "--key-file", key, image]
    for mode in ("encrypt", "reencrypt"):
        convert(mode, *named)
        subprocess.run([program("qemu-img"), "convert", "-O", "raw", image, raw], check=True)
        with open_volume(raw, header=header, passphrase=b"secret", read_only=True) as volume:
            assert volume.pread(len(PLAIN), 0) == PLAIN
        assert raw.read_bytes() != PLAIN
    convert("decrypt", *named)
    subprocess.run([program("qemu-img"), "convert", "-O", "raw", image, raw], check=True)
    assert raw.read_bytes() == PLAIN


@pytest.mark.needs("qemu-nbd")
def test_behind_a_server(tmp_path: Path, key: Path) -> None:
    """So are those behind an NBD server."""
    socket = tmp_path / "socket"
    raw, header = tmp_path / "raw", tmp_path / "header"
    raw.write_bytes(PLAIN)
    for mode in ("encrypt", "reencrypt", "decrypt"):
        with qemu_nbd(raw, socket):
            convert(mode, "--header", header, "--key-file", key, address(socket, "disk"))
        if mode == "decrypt":
            assert raw.read_bytes() == PLAIN
        else:
            with open_volume(raw, header=header, passphrase=b"secret", read_only=True) as volume:
                assert volume.pread(len(PLAIN), 0) == PLAIN


def test_a_part_of_a_payload(tmp_path: Path, key: Path) -> None:
    """What is before and behind it is not touched; the header says where it is, also to cryptsetup."""
    payload, header = tmp_path / "payload", tmp_path / "header"
    before, behind = b"before" * (2 * MIB // 6 + 1), b"behind" * 100_000
    before = before[: 2 * MIB]
    payload.write_bytes(before + PLAIN + behind)
    where = ["--offset", str(2 * MIB), "--size", str(len(PLAIN))]
    convert("encrypt", *where, "--header", header, "--key-file", key, payload)
    data = payload.read_bytes()
    assert data[: len(before)] == before
    assert data[len(before) + len(PLAIN) :] == behind
    assert data[len(before) : len(before) + len(PLAIN)] != PLAIN
    segment = json.loads(cryptsetup("luksDump", "--dump-json-metadata", header))["segments"]["0"]
    assert (segment["offset"], segment["size"]) == (str(2 * MIB), str(len(PLAIN)))
    for mode in ("reencrypt", "decrypt"):
        with open_volume(payload, header=header, passphrase=b"secret", read_only=True) as volume:
            assert volume.pread(3 * MIB, 0) == PLAIN
        convert(mode, "--header", header, "--key-file", key, payload)
    assert payload.read_bytes() == before + PLAIN + behind


def test_an_attached_header(tmp_path: Path, key: Path) -> None:
    """A volume with its header before the data gets another key in place; to decrypt it, data would have to move."""
    payload = tmp_path / "payload"
    done = lukshdrfs("create", *CHEAP, *SMALL, "--size", "4M", "--key-file", key, payload)
    assert done.returncode == 0, done.stderr
    with open_volume(payload, passphrase=b"secret") as volume:
        assert volume.pwrite(PLAIN, 0) == len(PLAIN)
    before = payload.read_bytes()
    convert("reencrypt", "--key-file", key, payload)
    assert payload.read_bytes()[-MIB:] != before[-MIB:]
    with open_volume(payload, passphrase=b"secret", read_only=True) as volume:
        assert volume.pread(len(PLAIN), 0) == PLAIN
    cryptsetup("open", "--test-passphrase", "--disable-locks", "--key-file", key, payload)
    done = lukshdrfs("decrypt", "--key-file", key, payload)
    assert done.returncode == 4, done.stderr


def test_another_passphrase(tmp_path: Path, key: Path) -> None:
    """The new key may have another passphrase; then the old one opens nothing afterwards."""
    payload, header, new = tmp_path / "payload", tmp_path / "header", tmp_path / "new"
    payload.write_bytes(PLAIN)
    new.write_bytes(b"another")
    convert("encrypt", "--header", header, "--key-file", key, payload)
    both: list[Argument] = ["--header", header, "--key-file", key, "--new-key-file", new, payload]
    convert("reencrypt", "--init-only", *both)
    convert("reencrypt", *both)
    with open_volume(payload, header=header, passphrase=b"another", read_only=True) as volume:
        assert volume.pread(len(PLAIN), 0) == PLAIN
    done = lukshdrfs("key", "test", "--header", header, "--key-file", key, payload)
    assert done.returncode == 2, done.stderr


def test_luks1(tmp_path: Path, key: Path) -> None:
    """It ends as LUKS1 if that is asked for; what LUKS1 cannot say is refused before anything is written."""
    payload, header = tmp_path / "payload", tmp_path / "header"
    payload.write_bytes(PLAIN)
    named: list[Argument] = ["--type", "luks1", "--header", header, "--key-file", key, payload]
    done = lukshdrfs("encrypt", "--pbkdf", "argon2id", *named)
    assert done.returncode == 4, done.stderr
    assert not header.exists()
    convert("encrypt", *named)
    assert payload.read_bytes() != PLAIN
    cryptsetup("open", "--test-passphrase", "--type", "luks1", "--disable-locks", "--key-file", key, header)
    with open_volume(payload, header=header, passphrase=b"secret", read_only=True) as volume:
        assert volume.pread(len(PLAIN), 0) == PLAIN


@pytest.mark.parametrize("mode", ["reencrypt", "decrypt"])
def test_a_tail_that_would_be_lost(tmp_path: Path, key: Path, mode: str) -> None:
    """A payload that is no whole sectors is refused before the header says that anything has begun."""
    payload, header = tmp_path / "payload", tmp_path / "header"
    done = lukshdrfs("create", *CHEAP, *SMALL, "--size", "4M", "--header", header, "--key-file", key, payload)
    assert done.returncode == 0, done.stderr
    with payload.open("ab") as file:
        file.write(bytes(100))
    before = header.read_bytes()
    done = lukshdrfs(mode, "--header", header, "--key-file", key, payload)
    assert done.returncode == 4, done.stderr
    assert header.read_bytes() == before


def test_metadata_that_are_nearly_full(tmp_path: Path, key: Path) -> None:
    """What does not fit while a step is in work is refused before anything begins, at any size of what fills it."""
    payload, header = tmp_path / "payload", tmp_path / "header"
    done = lukshdrfs("create", *CHEAP, *SMALL, "--size", "1M", "--header", header, "--key-file", key, payload)
    assert done.returncode == 0, done.stderr
    area, statuses = header.read_bytes(), set()
    for size in range(8600, 10600, 200):
        document = metadata(area)
        document["tokens"]["0"] = {"type": "made-up", "keyslots": ["0"], "text": "x" * size}
        header.write_bytes(with_metadata(area, document))
        before = header.read_bytes()
        done = lukshdrfs("reencrypt", "--hotzone-size", "64K", *CHEAP, "--header", header, "--key-file", key, payload)
        statuses.add(done.returncode)
        assert (done.returncode == 4) == (header.read_bytes() == before), done.stderr
    assert statuses == {0, 4}


@pytest.mark.root
def test_a_sparse_payload_on_a_full_disk(tmp_path: Path, key: Path) -> None:
    """It is refused; forced, it stops where nothing is in work, and what is there can be used."""
    folder, header = tmp_path / "small", tmp_path / "header"
    folder.mkdir()
    payload = folder / "payload"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", folder], check=True)
    try:
        payload.touch()
        os.truncate(payload, 32 * MIB)
        named: list[Argument] = ["--header", header, "--key-file", key, payload]
        done = lukshdrfs("encrypt", *CHEAP, *SMALL, *named)
        assert done.returncode == 4, done.stderr
        assert not header.exists()
        done = lukshdrfs("encrypt", "--force", "--hotzone-size", "1M", *CHEAP, *SMALL, *named)
        assert done.returncode == 4, done.stderr
        with open_volume(payload, header=header, passphrase=b"secret") as volume:
            assert volume.pread(32 * MIB, 0) == bytes(32 * MIB)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.needs("fuse")
def test_data_that_move_are_not_converted_online(tmp_path: Path, key: Path) -> None:
    """A conversion that makes room for its header is mounted, and with --convert refused by its name."""
    payload, mountpoint = tmp_path / "payload", tmp_path / "mnt"
    payload.write_bytes(PLAIN * 4)
    mountpoint.mkdir()
    cryptsetup(
        "reencrypt", "--encrypt", "--init-only", "-q", "--force-offline-reencrypt", "--disable-locks", "--type=luks2",
        *CHEAP, "--reduce-device-size", "1M", "--luks2-keyslots-size", "256k", "--key-file", key, payload,
    )  # fmt: skip
    done = lukshdrfs("mount", "--convert", "--key-file", key, payload, mountpoint)
    assert done.returncode == 4, done.stderr
    assert "moves the data" in done.stderr
    assert not is_mounted(mountpoint)


def test_what_is_refused(tmp_path: Path, key: Path) -> None:
    """Each with its own exit status, and nothing is written."""
    payload, header = tmp_path / "payload", tmp_path / "header"
    payload.write_bytes(PLAIN[: MIB + 100])
    options: list[Argument] = ["--header", header, "--key-file", key]
    refused: list[tuple[str, list[Argument], int]] = [
        ("encrypt", [*options, payload], 4),  # no whole sectors
        ("encrypt", ["--key-file", key, payload], 1),  # no place for the header
        ("encrypt", [*options, "--resume-only", payload], 1),  # nothing has begun
        ("encrypt", [*options, "--resilience", "none", payload], 1),
        ("decrypt", [*options, payload], 4),  # no header
        ("reencrypt", [*options, payload], 4),
    ]
    for mode, arguments, status in refused:
        done = lukshdrfs(mode, *arguments)
        assert done.returncode == status, (mode, arguments, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not header.exists()
        assert payload.read_bytes() == PLAIN[: MIB + 100]
