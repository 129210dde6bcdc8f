"""Removing a keyslot by its number: whose secret may do it, and what is said of what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cryptsetup import LUKS1_XTS, XTS_512, Format, LuksFiles, cryptsetup, keyslot_of, volume_key
from support.keyslots import run
from support.mounts import Argument, lukshdrfs
from support.volumes import MakeVolume

pytestmark = pytest.mark.needs("cryptsetup")

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]


@pytest.fixture(params=[XTS_512, LUKS1_XTS], ids=["luks2", "luks1"])
def files(request: pytest.FixtureRequest, make_volume: MakeVolume) -> LuksFiles:
    """A header with keyslots 0 and 1."""
    return with_second(make_volume, request.param)


def with_second(make_volume: MakeVolume, layout: Format) -> LuksFiles:
    files = make_volume(layout)
    second(files).write_bytes(b"another secret")
    run("key", "add", *CHEAP, "--header", files.header, "--key-file", files.key_file, "--new-key-file", second(files))
    return files


def second(files: LuksFiles) -> Path:
    return files.key_file.with_name("second")


@pytest.mark.parametrize("whose", ["another's", "its own", "the volume key"])
def test_any_secret_of_the_volume_removes_a_keyslot(whose: str, files: LuksFiles) -> None:
    """With a keyslot's number, a secret says that somebody may do it, and not which keyslot goes."""
    secret: list[Argument] = ["--key-file", files.key_file if whose == "another's" else second(files)]
    if whose == "the volume key":
        secret = ["--volume-key-file", written(files)]
    run("key", "remove", "--header", files.header, "--key-slot", "1", *secret)
    assert keyslot_of(files.header, second(files)) is None
    assert keyslot_of(files.header, files.key_file) == 0


def written(files: LuksFiles) -> Path:
    path = files.key_file.with_name("volume-key")
    path.write_bytes(volume_key(files))
    return path


def test_a_wrong_secret_removes_nothing(files: LuksFiles) -> None:
    """A secret that opens nothing has exit code 2, a keyslot that is not in use 1."""
    before = files.header.read_bytes()
    wrong = files.key_file.with_name("wrong")
    wrong.write_bytes(b"wrong")
    assert lukshdrfs("key", "remove", "--header", files.header, "--key-slot", "1", "--key-file", wrong).returncode == 2
    assert lukshdrfs("key", "remove", "--header", files.header, "--key-slot", "5", "--key-file", wrong).returncode == 1
    assert files.header.read_bytes() == before


def test_tokens_that_are_left_without_a_keyslot_are_named(make_volume: MakeVolume) -> None:
    """The command that leaves them says so, and so does every later verification; one that has another stays quiet."""
    files = with_second(make_volume, XTS_512)
    for number, slots in {"3": ["1"], "4": ["0", "1"]}.items():
        token = {"type": "some-program", "keyslots": slots, "key": "value"}
        cryptsetup("token", "import", "--token-id", number, files.header, stdin=json.dumps(token).encode())
    before = lukshdrfs("header", "verify", "--header", files.header)
    assert "token" not in before.stdout
    done = lukshdrfs("key", "remove", "--header", files.header, "--key-slot", "1")
    assert done.returncode == 0
    assert "token 3 (some-program)" in done.stderr
    assert "token 4" not in done.stderr
    verified = json.loads(lukshdrfs("header", "verify", "--json", "--header", files.header).stdout)
    assert verified["sound"]
    assert [one["subject"] for one in verified["findings"] if one["severity"] == "warning"] == ["token 3"]
