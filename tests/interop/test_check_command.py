"""`lukshdrfs check`: what others make gives itself away; what `create` makes does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.cryptsetup import LUKS1_XTS, XTS_512, Format, cryptsetup
from support.devices import loop_device
from support.golden import golden_volumes
from support.mounts import lukshdrfs
from support.tools import program
from support.volumes import MIB, SECRET

from lukshdrfs.cli.terminal.picture import PNG_SIGNATURE

SIZE = 24 * MIB
FAST = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


def check(payload: Path | str, *options: str | Path) -> dict[str, Any]:
    """Run it; return what it says in JSON. The exit status is the verdict's."""
    done = lukshdrfs("check", "--json", *options, payload)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    assert done.returncode == {"random": 0, "gives itself away": 1}[document["verdict"]]
    return document


def telling(document: dict[str, Any]) -> dict[str, str]:
    """Return subject and text of each error."""
    return {finding["subject"]: finding["text"] for finding in document["findings"] if finding["severity"] == "error"}


def create(folder: Path, *options: str) -> Path:
    """Make a volume; return its payload. The header is in another directory."""
    (folder / "key").write_bytes(SECRET)
    (folder / "headers").mkdir()
    payload = folder / "payload.img"
    done = lukshdrfs(
        "create", "--header", folder / "headers/volume.hdr", "--size", str(SIZE), "--key-file", folder / "key", *FAST,
        *options, payload,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return payload


@pytest.fixture
def random_file(tmp_path: Path) -> Path:
    """Return random bytes, as many as a small disk has."""
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def test_what_create_has_wiped_is_random(tmp_path: Path) -> None:
    """From the first byte to the last."""
    document = check(create(tmp_path))
    assert document["verdict"] == "random"
    assert document["read"] == document["size"] == SIZE


def test_a_sparse_payload(tmp_path: Path) -> None:
    """`create --no-wipe` leaves holes, and they show."""
    found = telling(check(create(tmp_path, "--no-wipe")))
    assert set(found) == {"holes"}
    assert f"{SIZE} bytes (100.00 %)" in found["holes"]


@pytest.mark.needs("qemu-img")
@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_images_of_virtual_machines(kind: str, tmp_path: Path) -> None:
    """QEMU's formats are known by their names."""
    image = tmp_path / "image"
    subprocess.run([program("qemu-img"), "create", "-q", "-f", kind, image, "16M"], check=True)
    name = {"vpc": "VHD"}.get(kind, kind)
    assert name.lower() in telling(check(image))["signature"].lower()


@pytest.mark.needs("mkfs.ext4")
def test_a_file_system(tmp_path: Path) -> None:
    """blkid names it."""
    image = tmp_path / "image"
    image.write_bytes(os.urandom(16 * MIB))
    subprocess.run([program("mkfs.ext4"), "-q", "-F", "-E", "nodiscard", image], check=True)
    document = check(image)
    assert telling(document)["signature"] == "blkid recognises ext4"
    assert {"zero blocks", "low entropy"} <= set(telling(document))


@pytest.mark.needs("cryptsetup")
@pytest.mark.parametrize("layout", [XTS_512, LUKS1_XTS], ids=lambda layout: layout.id)
def test_an_attached_header(layout: Format, tmp_path: Path) -> None:
    """Whatever the type, it is a LUKS header; of LUKS2, its second copy tells too when the first one is gone."""
    payload, key = tmp_path / "payload", tmp_path / "key"
    payload.write_bytes(os.urandom(SIZE))
    key.write_bytes(SECRET)
    cryptsetup("luksFormat", *layout.options, "--key-file", key, payload)
    signatures = [finding["text"] for finding in check(payload)["findings"] if finding["subject"] == "signature"]
    assert signatures[:2] == ["blkid recognises crypto_LUKS", "it begins like a LUKS header"]
    with payload.open("r+b") as stream:
        stream.write(os.urandom(16384))
    after = check(payload)
    assert ("signature" in telling(after)) == (layout.type == "luks2")


def test_random_bytes_of_the_kernel(random_file: Path) -> None:
    """Nothing is found, and nothing is said but what was tested."""
    document = check(random_file)
    assert document["findings"] == []
    done = lukshdrfs("check", random_file)
    assert done.returncode == 0
    *said, verdict = done.stdout.splitlines()
    assert verdict == "random"
    assert re.search(r"(every payload|most payloads|one in \d+ payloads) of random bytes of this size", said[-1])
    assert not re.search(r"\bp\b|\de-\d", done.stdout), "a p-value means nothing to whoever asks"


def test_the_document(random_file: Path) -> None:
    """What is in it, and of which type, with a finding or without one."""
    with random_file.open("r+b") as stream:
        stream.write(bytes(4096))
    document = check(random_file)
    assert list(document) == ["payload", "verdict", "size", "read", "findings", "test"]
    assert (document["payload"], document["verdict"]) == (str(random_file), "gives itself away")
    (zeros,) = document["findings"]
    assert zeros | {"text": ""} == {
        "severity": "error",
        "subject": "zero blocks",
        "text": "",
        "offset": 0,
        "places": [{"offset": 0, "size": 4096}],
    }
    test = document["test"]
    assert test["name"].startswith("chi-square")
    assert test["false_alarms"] == 1e-4
    assert test["level"] == pytest.approx(1e-4 / 130)
    for statistic in test["statistics"]:
        assert set(statistic) == {"name", "least_p", "least_p_offset", "total_p", "failed"}
        assert 0 <= statistic["least_p"] <= 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("volume.hdr", "volume.hdr in the same directory is a LUKS header"),
        ("notes", "notes in the same directory is a LUKS header"),
        ("second", "second in the same directory is the second copy of a LUKS2 header"),
        ("other.luks", "other.luks in the same directory is by its name a header or a volume"),
    ],
)
def test_neighbours(name: str, text: str, random_file: Path) -> None:
    """A header beside it is a warning, whatever it is called; the payload itself stays random."""
    header, _ = golden_volumes()["luks2-aes-xts-512-s4096"].unpack(random_file.parent)
    assert header is not None
    data = header.read_bytes()
    header.unlink()
    (random_file.parent / "payload.img").unlink()
    content = {"other.luks": b"", "second": bytes(4096) + data[4096:]}.get(name, data)
    (random_file.parent / name).write_bytes(content)
    document = check(random_file)
    assert document["verdict"] == "random"
    (finding,) = document["findings"]
    assert (finding["severity"], finding["subject"]) == ("warning", "neighbour")
    assert finding["text"].startswith(text)


def test_the_map(random_file: Path, tmp_path: Path) -> None:
    """A PNG appears; nothing but a PNG is overwritten, above all not the payload."""
    picture = tmp_path / "map.png"
    for _ in range(2):
        check(random_file, "--map", picture)
        assert picture.read_bytes().startswith(PNG_SIGNATURE)
    before = random_file.read_bytes()
    done = lukshdrfs("check", "--map", random_file, random_file)
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert random_file.read_bytes() == before


@pytest.mark.parametrize("size", [512, 4095, 4096, 65537])
def test_small_ones(size: int, tmp_path: Path) -> None:
    """Too little to judge is random, and that is said."""
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(size))
    document = check(path)
    assert document["verdict"] == "random"
    assert any("too few" in finding["text"] for finding in document["findings"]) == (size < 4096)


@pytest.mark.parametrize("size", [0, 1, 511])
def test_less_than_a_sector_is_no_payload(size: int, tmp_path: Path) -> None:
    """Nothing can be said of it, and certainly not that it is random: exit status 4, and one line that names it."""
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(size))
    done = lukshdrfs("check", path)
    assert (done.returncode, done.stdout) == (4, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr


@pytest.mark.parametrize("name", ["missing", ".", "/dev/null"])
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    """Exit status 4 and one line."""
    done = lukshdrfs("check", tmp_path / name)
    assert (done.returncode, done.stdout) == (4, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_large_one_is_sampled(tmp_path: Path) -> None:
    """Of a TiB that was never written, all is known at once."""
    path = tmp_path / "payload"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)
        os.pwrite(stream.fileno(), os.urandom(MIB), (1 << 40) - MIB)
    document = check(path)
    assert set(telling(document)) == {"holes"}
    assert document["read"] < 259 * MIB
    assert any(finding["subject"] == "sample" for finding in document["findings"])


@pytest.mark.root
@pytest.mark.needs("loop")
def test_a_block_device(random_file: Path, tmp_path: Path) -> None:
    """It is judged as a file is, though somebody has it for himself."""
    zeroed = tmp_path / "zeroed"
    shutil.copy(random_file, zeroed)
    with zeroed.open("r+b") as stream:
        stream.seek(MIB)
        stream.write(bytes(4096))
    with loop_device(random_file) as good, loop_device(zeroed) as bad:
        descriptor = os.open(good, os.O_RDWR | os.O_EXCL)
        try:
            assert check(good)["findings"] == []
        finally:
            os.close(descriptor)
        assert set(telling(check(bad))) == {"zero blocks"}
