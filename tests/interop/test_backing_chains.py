"""Images that are made of others: those are opened on request, by us, with the rights of whose image names them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.engines import engine_of, first_bytes, opened, refusal
from support.processes import kill, wait_gone
from support.qcow2_images import name_backing_file, name_data_file, new_image

from lukshdrfs.payload.qemu.backing_chain import MAX_DEPTH

pytestmark = pytest.mark.needs("qemu-storage-daemon", "qemu-img")

MIB = 1 << 20
SIZE = 8 * MIB
STRANGER = 61234


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an empty image."""
    return new_image(tmp_path / "image.qcow2", SIZE)


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """Return a file that no image shall get at."""
    path = tmp_path / "treasure"
    path.write_bytes(b"treasure" * (SIZE // 8))
    return path


def test_a_chain_that_is_asked_for(image: Path, tmp_path: Path) -> None:
    """With the option, the images below are read, whichever way they are named, and never written to."""
    base, middle, top = tmp_path / "base.raw", tmp_path / "middle.qcow2", tmp_path / "sub" / "top.qcow2"
    base.write_bytes(b"base" + bytes(SIZE - 4))
    top.parent.mkdir()
    new_image(middle, SIZE, "-F", "raw", "-b", "base.raw")  # relative to the image that names it
    new_image(top, SIZE, "-F", "qcow2", "-b", f"file:{middle}")
    before = [base.read_bytes(), middle.read_bytes()]
    with opened(top, backing_chain=True) as payload:
        assert first_bytes(payload) == b"base" + bytes(4)
        payload.write(memoryview(b"top".ljust(4096, b"!")), 0)
        payload.flush()
        pid = engine_of(top)
        for below in (base, middle):
            links = [link for link in Path(f"/proc/{pid}/fd").iterdir() if link.readlink() == below]
            assert links
            for link in links:
                (flags,) = re.findall(r"flags:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{link.name}").read_text())
                assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
        kill(pid)
        wait_gone(pid)
        assert first_bytes(payload, 4) == b"top!"
        assert first_bytes(payload, 4, MIB) == bytes(4)
    assert [base.read_bytes(), middle.read_bytes()] == before
    with opened(image, backing_chain=True) as payload:  # where there is no backing file, the option does no harm
        assert payload.size == SIZE


def test_what_no_chain_can_have(image: Path, tmp_path: Path, treasure: Path) -> None:
    """A server, a format that is not said or not known, a folder, a circle, a data file below: refused by name."""
    below = new_image(tmp_path / "below.qcow2", SIZE)

    def refused_for(name: str, image_format: str | None) -> str:
        name_backing_file(new_image(image, SIZE), name, image_format)
        return refusal(image, backing_chain=True)

    for address in (
        "nbd://127.0.0.1:10809/",
        f"nbd:unix:{tmp_path}/nbd",
        "http://127.0.0.1/x",
        'json:{"driver":"raw"}',
    ):
        assert address in refused_for(address, "raw")
    assert "without its format" in refused_for(str(treasure), None)
    assert "'vmdk'" in refused_for(str(treasure), "vmdk")
    assert "directory" in refused_for(str(tmp_path), "raw")
    assert "No such file" in refused_for("nowhere", "raw")
    assert "backing file of itself" in refused_for(str(image), "qcow2")
    name_data_file(below, str(treasure))
    assert str(treasure) in refused_for(str(below), "qcow2")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file" in refused_for(str(tmp_path / "pipe"), "raw")


def test_a_chain_ends(tmp_path: Path) -> None:
    """One of too many images is refused before any descriptors run out."""
    for number in range(MAX_DEPTH + 1):
        link = new_image(tmp_path / f"{number}.qcow2", SIZE)
        name_backing_file(link, f"{number + 1}.qcow2", "qcow2")
    new_image(tmp_path / f"{MAX_DEPTH + 1}.qcow2", SIZE)
    assert f"more than {MAX_DEPTH}" in refusal(tmp_path / "0.qcow2", backing_chain=True)


@pytest.mark.root
def test_root_opens_for_a_stranger_what_the_stranger_can_open(image: Path, treasure: Path, tmp_path: Path) -> None:
    """Whose image names a file decides whether root opens it, also where root has asked for the chain."""
    public, secret, both = tmp_path / "public", treasure, tmp_path
    for folder in (both, *both.parents[:3]):  # pytest's own folders are closed to others
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    public.write_bytes(b"public".ljust(SIZE, b"."))
    os.chown(public, STRANGER, STRANGER)
    for path, mode in ((public, 0o600), (secret, 0o640)):
        path.chmod(mode)
    new_image(image, SIZE, "-F", "raw", "-b", secret)
    os.chown(image, STRANGER, STRANGER)
    assert "Permission denied" in refusal(image, backing_chain=True)
    os.chown(image, STRANGER, 0)  # as in a folder that gives its files its own group: the stranger is not in it
    assert "Permission denied" in refusal(image, backing_chain=True)
    os.chown(image, STRANGER, STRANGER)
    name_backing_file(new_image(image, SIZE), str(public))
    with opened(image, backing_chain=True) as payload:
        assert first_bytes(payload) == b"public.."
    os.chown(image, 0, 0)  # root's own image may be made of a stranger's, and of root's
    for path, begins in ((public, b"public"), (secret, b"treasu")):
        name_backing_file(new_image(image, SIZE), str(path))
        with opened(image, backing_chain=True) as payload:
            assert first_bytes(payload, 6) == begins
    # we are who we were, and so is every thread
    texts = [(task / "status").read_text() for task in Path("/proc/self/task").iterdir()]
    assert {line for text in texts for line in text.splitlines() if line.startswith("Uid:")} == {"Uid:\t0\t0\t0\t0"}
