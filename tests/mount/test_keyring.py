"""Passphrases from the kernel's keyring, and from systemd's agents."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cryptsetup import LuksFiles, cryptsetup
from support.mounts import Mounted, lukshdrfs

from lukshdrfs.cli.secrets import asking
from lukshdrfs.cli.secrets.source import SecretSource
from lukshdrfs.errors import DeviceError
from lukshdrfs.secret import SecretBytes

PROCESS_KEYRING, SESSION_KEYRING = -2, -3
KEYCTL_JOIN, KEYCTL_UNLINK = 1, 9


@pytest.fixture
def description() -> Iterator[str]:
    """Return the name of a key that is in the session's keyring, and gone afterwards."""
    try:
        keyutils = ctypes.CDLL("libkeyutils.so.1", use_errno=True)
    except OSError:
        pytest.skip("libkeyutils is missing: apt-get install libkeyutils1")
    name = f"lukshdrfs-test-{os.getpid()}"
    keyutils.keyctl_join_session_keyring(None)
    key = keyutils.add_key(b"user", name.encode(), b"the secret", 10, SESSION_KEYRING)
    if key < 0:
        pytest.skip(f"the kernel takes no key: {os.strerror(ctypes.get_errno())}")
    yield name
    keyutils.keyctl_unlink(key, SESSION_KEYRING)


@pytest.fixture
def files(volume: LuksFiles) -> LuksFiles:
    """Return a volume that the key in the keyring opens."""
    second = volume.key_file.with_name("second")
    second.write_bytes(b"the secret")
    cryptsetup(
        "luksAddKey", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", volume.key_file,
        volume.header, second,
    )  # fmt: skip
    return volume


@pytest.mark.needs("cryptsetup")
def test_key_of_a_description(description: str, files: LuksFiles) -> None:
    """`--key-description` takes the key of that name; `key test` says which keyslot it opens."""
    done = lukshdrfs("key", "test", "--header", files.header, "--key-description", description)
    assert (done.returncode, done.stdout) == (0, "keyslot 1\n"), done.stderr


@pytest.mark.needs("cryptsetup")
def test_a_key_that_is_not_there(files: LuksFiles) -> None:
    """An unknown description is one line and exit status 4."""
    done = lukshdrfs("key", "test", "--header", files.header, "--key-description", "no such key")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert "no such key" in done.stderr


@pytest.mark.needs("cryptsetup", "fuse")
def test_keyring_tokens_open_the_volume(description: str, files: LuksFiles) -> None:
    """A token that cryptsetup made names a key: if it is there, nobody is asked."""
    cryptsetup("token", "add", "--key-description", description, "--key-slot", "1", files.header)
    with Mounted(files.payload, header=files.header) as mount:
        assert len(mount.image.read_bytes()) == files.payload.stat().st_size


@pytest.mark.needs("cryptsetup")
def test_a_token_whose_key_is_not_there(files: LuksFiles, tmp_path: Path) -> None:
    """Without its key, the token is passed over, and standard input is read as always."""
    cryptsetup("token", "add", "--key-description", "no such key", "--key-slot", "1", files.header)
    folder = tmp_path / "mnt"
    folder.mkdir()
    done = lukshdrfs("mount", "--header", files.header, files.payload, folder, stdin=b"wrong\n")
    assert done.returncode == 2


def answer_questions(folder: Path, answer: bytes, stop: threading.Event) -> None:
    """Be an agent: answer each question (systemd's "Password Agents" specification)."""
    while not stop.wait(0.02):
        for question in folder.glob("ask.*"):
            fields = dict(line.split("=", 1) for line in question.read_text().splitlines() if "=" in line)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
                agent.sendto(answer, fields["Socket"])
            question.unlink(missing_ok=True)


@pytest.fixture
def _nothing_on_standard_input() -> Iterator[None]:
    """Have /dev/null there, as a service has it."""
    before = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.root
@pytest.mark.needs("systemd-ask-password")
@pytest.mark.usefixtures("_nothing_on_standard_input")
@pytest.mark.parametrize(("answer", "expected"), [(b"+the answer", b"the answer"), (b"-", None)])
def test_systemds_agents_are_asked(
    answer: bytes, expected: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where systemd runs and nobody is at a terminal, whoever answers its questions gives the passphrase."""
    questions = Path("/run/systemd/ask-password")
    questions.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(asking, "_SYSTEMD_RUNS", tmp_path)
    stop = threading.Event()
    agent = threading.Thread(target=answer_questions, args=(questions, answer, stop))
    agent.start()
    try:
        source = SecretSource()
        assert source.interactive
        if expected is None:
            with pytest.raises(DeviceError):
                source.read("Passphrase: ")
        else:
            assert source.read("Passphrase: ") == SecretBytes.copy_of(expected)
    finally:
        stop.set()
        agent.join()


@pytest.mark.usefixtures("_nothing_on_standard_input")
def test_without_systemd_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Elsewhere, standard input is read, though nothing comes."""
    monkeypatch.setattr(asking, "_SYSTEMD_RUNS", tmp_path / "not there")
    assert not SecretSource().interactive
