"""How an engine starts, what it says, how it ends: nothing hangs for long, fills memory or is left behind."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from support.engines import engine_of, engines_of, first_bytes, opened, refusal
from support.processes import kill, wait_gone
from support.qcow2_images import new_image

from lukshdrfs.errors import DeviceError, InUse, LukshdrfsError
from lukshdrfs.payload.qemu import engine
from lukshdrfs.payload.qemu.confined_process import SAID_SIZE, Access, ConfinedProcess
from lukshdrfs.payload.qemu.engine import Engine
from lukshdrfs.payload.qemu.image_file import ImageFile

pytestmark = pytest.mark.needs("qemu-storage-daemon", "qemu-img")

MIB = 1 << 20
SIZE = 8 * MIB
STRANGER = 61234
US = (os.geteuid(), os.getegid())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an empty image."""
    return new_image(tmp_path / "image.qcow2", SIZE)


def test_no_name_of_the_socket_is_left(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can reach the engine or take its socket's place; nothing of anybody's is removed, whatever its name."""
    runtime = tmp_path / ("long" * 40)  # longer than a socket's path can be
    runtime.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "socket").write_text("precious")
    (runtime / "lukshdrfs-4194303-x").symlink_to(other)
    (runtime / "lukshdrfs-4194303-y").mkdir()
    before = sorted(runtime.rglob("*"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with opened(image) as payload:
        assert sorted(runtime.rglob("*")) == before
        pid = engine_of(image)
        kill(pid)
        wait_gone(pid)
        assert first_bytes(payload) == bytes(8)
        assert sorted(runtime.rglob("*")) == before
    assert (other / "socket").read_text() == "precious"


@pytest.mark.root
def test_a_runtime_folder_in_strange_hands(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no runtime folder, that for temporary files is taken; one that cannot be written to is named."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    with opened(image):
        pass
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    assert "/proc" in refusal(image)


def test_the_engines_own_sentence(image: Path) -> None:
    """What QEMU says of an image is passed on whole, after the image's name, and nothing of its command line."""
    for offset, damage, words in (
        (40, b"\0" * 7 + b"\1", "Active L1 table offset invalid"),
        (72, b"\x10" + b"\0" * 7, "Unsupported qcow2 feature(s): Unknown incompatible feature: 1000000000000000"),
        (48, b"\0" * 7 + b"\7", "Reference count table offset invalid"),
    ):
        with new_image(image, SIZE).open("r+b") as file:
            file.seek(offset)
            file.write(damage)
        assert refusal(image) == f"payload {image}: {words}"
    with new_image(image, SIZE).open("r+b"), opened(image), pytest.raises(InUse, match='Failed to get "write" lock'):
        opened(image)
    odd = image.with_name('we: "ird\\ {lock} image')
    image.rename(odd)
    odd.chmod(0o600)
    with opened(odd) as payload:
        assert payload.size == SIZE


def test_what_a_program_says_is_bounded(tmp_path: Path) -> None:
    """A program that never stops talking fills no memory, and is not held up either; its first words are kept."""
    done = tmp_path / "done"
    done.write_bytes(b"")
    with done.open("r+b") as file:
        talker = ConfinedProcess(
            "/bin/sh",
            ["-c", "n=0; while [ $n -lt 20000 ]; do echo line $n >&2; n=$((n + 1)); done; echo x >&3"],
            [(file.fileno(), Access.NONE)], owner=US,
        )  # fmt: skip
        talker.wait(60)
    said = talker.said()
    assert said[0] == "line 0"
    assert sum(map(len, said)) <= SAID_SIZE
    talker.close()
    assert done.read_bytes() == b"x\n"


def test_an_engine_that_hangs_is_not_waited_for_long(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not get ready, or does not end, is killed when its time is over."""
    monkeypatch.setattr(engine, "START_PATIENCE_S", 0.3)
    monkeypatch.setattr(engine, "STOP_PATIENCE_S", 0.3)
    stopped = opened(image)
    pid = engine_of(image)
    os.kill(pid, signal.SIGSTOP)
    stopped.close()
    wait_gone(pid)
    monkeypatch.setattr(engine, "find_program", lambda *_: "/bin/sh")
    monkeypatch.setattr(Engine, "_options", lambda *_: [("-c", "while :; do :; done")])
    ends: list[int | None] = []
    killed = ConfinedProcess.kill

    def kill_and_note(process: ConfinedProcess) -> None:
        killed(process)
        ends.append(process.wait(0))

    monkeypatch.setattr(ConfinedProcess, "kill", kill_and_note)
    with pytest.raises(DeviceError, match="does not get ready"):
        Engine(ImageFile.open(str(image), read_only=False), "qcow2")
    assert ends[0] == -signal.SIGKILL


def test_closing_ends_an_engine_that_starts(image: Path) -> None:
    """Whoever closes an image does not wait for an engine that is being started again."""
    payload = opened(image)
    kill(engine_of(image))
    payload.close()
    assert not engines_of(image)
    with pytest.raises(LukshdrfsError):
        payload.flush()
