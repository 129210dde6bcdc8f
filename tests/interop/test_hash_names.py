"""Headers with hashes under the names that cryptsetup's libraries know them by, and with one that is not known here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.created import SMALL
from support.cryptsetup import LuksFiles, cryptsetup, keyslot_of, try_cryptsetup
from support.keyslots import run
from support.mounts import lukshdrfs
from support.volumes import MIB, new_files

pytestmark = pytest.mark.needs("cryptsetup")

CHEAP = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
BY_TYPE = pytest.mark.parametrize("kind", ["luks1", "luks2"])


def made(folder: Path, kind: str, name: str) -> LuksFiles:
    """Have cryptsetup make a header with a hash of this name; skip where its library does not have it."""
    files = new_files(folder, MIB)
    small = SMALL if kind == "luks2" else []
    done = try_cryptsetup(
        "luksFormat", "--type", kind, *small, *CHEAP, "--hash", name, "--key-file", files.key_file,
        "--header", files.header, files.payload,
    )  # fmt: skip
    if b"is not supported" in done.stderr:
        pytest.skip(f"cryptsetup's library has no {name}")
    assert done.returncode == 0, done.stderr
    return files


@BY_TYPE
@pytest.mark.parametrize("name", ["rmd160", "SHA2-256", "sha512-256"])
def test_cryptsetup_and_we_open_each_others_keyslots(name: str, kind: str, tmp_path: Path) -> None:
    """A header with the hash under that name opens here, and the keyslot that we add to it opens there."""
    files = made(tmp_path, kind, name)
    second = tmp_path / "second"
    second.write_bytes(b"another secret")
    run("key", "add", *CHEAP, "--header", files.header, "--key-file", files.key_file, "--new-key-file", second)
    assert lukshdrfs("header", "verify", "--header", files.header, "--key-file", second).returncode == 0
    assert keyslot_of(files.header, second) == 1


def test_new_headers_have_the_name_that_most_programs_know(tmp_path: Path) -> None:
    """Whatever name of a hash is asked for, what is written is the usual one."""
    files = new_files(tmp_path, MIB)
    run(
        "create",
        *SMALL,
        *CHEAP,
        "--hash",
        "RMD160",
        "--key-file",
        files.key_file,
        "--header",
        files.header,
        files.payload,
    )
    assert b"Hash:       ripemd160" in cryptsetup("luksDump", files.header)


@BY_TYPE
def test_a_hash_that_is_not_known_here_costs_its_keyslots_only(kind: str, tmp_path: Path) -> None:
    """Such a header is shown, verified and backed up as a sound one; what it asks for is refused by name."""
    files = made(tmp_path, kind, "md5-sha1")
    shown = json.loads(lukshdrfs("info", "--json", "--header", files.header).stdout)
    assert "md5-sha1" in shown["keyslots"][0]["unsupported"]
    assert shown["keyslots"][0]["problem"] == ""
    verified = json.loads(lukshdrfs("header", "verify", "--json", "--header", files.header).stdout)
    assert verified["sound"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run("header", "backup", "--header", files.header, ours)
    cryptsetup("luksHeaderBackup", "--header-backup-file", theirs, files.header)
    assert ours.read_bytes() == theirs.read_bytes()
    refused = lukshdrfs("key", "test", "--header", files.header, "--key-file", files.key_file)
    assert refused.returncode == 4
    assert "md5-sha1" in refused.stderr
    assert "damage" not in refused.stderr
