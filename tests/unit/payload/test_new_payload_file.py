"""A payload that is made stays in the hands that made it, whatever happens to its name."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lukshdrfs.errors import DeviceError, InUse
from lukshdrfs.payload import FilePayload
from lukshdrfs.payload.new_file import new_payload_file

SIZE = 8192


def test_it_is_there_when_all_went_well(tmp_path: Path) -> None:
    """It has its size, is nobody else's, and is locked while it is written."""
    path = tmp_path / "payload"
    with new_payload_file(str(path), SIZE) as payload:
        assert payload.size == SIZE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        payload.write(memoryview(b"content"), 0)
        with pytest.raises(InUse):
            FilePayload.open(path, read_only=False)
    assert path.read_bytes() == b"content".ljust(SIZE, b"\0")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_it_is_gone_when_something_failed(error: type[BaseException], tmp_path: Path) -> None:
    """Nothing half-made is left."""
    with pytest.raises(error), new_payload_file(str(tmp_path / "payload"), SIZE):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_takes_its_name_is_neither_written_nor_removed(kind: str, fails: bool, tmp_path: Path) -> None:
    """Somebody who may act in the folder can take the name away, and no file of anybody's is touched for it."""
    path, target = tmp_path / "payload", tmp_path / "target"
    target.write_bytes(b"another's")

    def make() -> None:
        with new_payload_file(str(path), SIZE) as payload:
            path.rename(tmp_path / "aside")
            if kind == "file":
                path.write_bytes(b"another's")
            else:
                path.symlink_to(target)
            payload.write(memoryview(b"content"), 0)
            if fails:
                raise InterruptedError

    with pytest.raises(InterruptedError if fails else InUse):
        make()
    assert path.is_symlink() is (kind == "link")
    assert path.read_bytes() == target.read_bytes() == b"another's"
    assert (tmp_path / "aside").read_bytes()[:7] == b"content"


def test_no_link_and_no_file_is_made_over(tmp_path: Path) -> None:
    """A name that is there already, if only as a link to nothing, is refused."""
    link, there = tmp_path / "link", tmp_path / "there"
    link.symlink_to(tmp_path / "elsewhere")
    there.write_bytes(b"")
    for path in (link, there, tmp_path / "no folder" / "payload"):
        with pytest.raises(DeviceError, match="payload"), new_payload_file(str(path), SIZE):
            pass
    assert not (tmp_path / "elsewhere").exists()
