"""Conversions in place: what one program begins, the other goes on with, at any moment."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from support.conversions import MODES, conversion, steps
from support.cryptsetup import cryptsetup, json_metadata
from support.luks2_edit import metadata, with_metadata
from support.mounts import lukshdrfs

from lukshdrfs import open_volume
from lukshdrfs.errors import HeaderError
from lukshdrfs.headers import read_header
from lukshdrfs.luks.luks2.reencryption.state import ReencryptionState

pytestmark = pytest.mark.needs("cryptsetup")

MIB = 1 << 20
ZONE = 64 << 10
BY_MODE = pytest.mark.parametrize("mode", MODES)
BY_RESILIENCE = pytest.mark.parametrize("resilience", ["checksum", "journal"])
EVERY = int(os.environ.get("LUKSHDRFS_EVERY", "5"))
"""Of cryptsetup's system calls, each so many'th is one at which it is killed."""
SIZES = [MIB + 512, 512, ZONE, MIB - 4096 + 1024]


@BY_MODE
@BY_RESILIENCE
@pytest.mark.parametrize("size", SIZES)
def test_from_beginning_to_end(tmp_path: Path, mode: str, resilience: str, size: int) -> None:
    """A conversion leaves the data as they were, whatever their size, and a volume that cryptsetup takes."""
    made = conversion(mode, tmp_path / "volume", size, old=("--sector-size", "512"))
    made.ours("--resilience", resilience, "--hotzone-size", "64K")
    made.check()
    document = json_metadata(made.header)
    assert "requirements" not in document["config"]
    assert list(document["segments"]) == ["0"]
    if mode == "decrypt":
        assert (document["keyslots"], document["digests"]) == ({}, {})
    else:
        assert len(document["keyslots"]) == len(document["digests"]) == 1
        cryptsetup("open", "--test-passphrase", "--key-file", made.key, made.header)


@BY_MODE
@BY_RESILIENCE
@pytest.mark.parametrize(("size", "done"), [(MIB, 0), (MIB + 512, 5)])
def test_begun_here_and_finished_by_cryptsetup(
    tmp_path: Path, mode: str, resilience: str, size: int, done: int
) -> None:
    """Cryptsetup goes on with what we have begun, after so many steps; half-way, the volume can be read."""
    made = conversion(mode, tmp_path / "volume", size, old=("--sector-size", "512"))
    made.ours("--resilience", resilience, "--init-only")
    assert not steps(made, done)
    made.check_as_it_is()
    made.theirs("--resume-only", "--hotzone-size", "64k")
    made.payload_cut_to_size()
    made.check()


@BY_MODE
@BY_RESILIENCE
@pytest.mark.parametrize("size", [MIB])
def test_begun_by_cryptsetup_and_finished_here(tmp_path: Path, mode: str, resilience: str, size: int) -> None:
    """We go on with what cryptsetup has begun; half-way, the volume can be read and written."""
    made = conversion(mode, tmp_path / "volume", size)
    made.theirs("--resilience", resilience, "--init-only")
    for _ in range(3):
        made.check_as_it_is()
        assert not steps(made, 2)
    with open_volume(made.payload, header=made.header, passphrase=made.key.read_bytes()) as volume:
        for at in range(0, size, 100_000):
            assert volume.pwrite(made.plain[at : at + 5000], at) > 0
    made.check_as_it_is()
    made.ours()
    made.check()


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ("512", ("--sector-size", "4096")),
        ("4096", ("--sector-size", "512")),
        ("512", ("--cipher", "aes-cbc-essiv:sha256", "--key-size", "256")),
        ("512", ("--keep-key", "--sector-size", "4096")),
        ("4096", ("--key-size", "256", "--sector-size", "1024")),
    ],
)
@pytest.mark.parametrize("finisher", ["ours", "theirs"])
def test_another_cipher_or_sector_size(tmp_path: Path, before: str, options: tuple[str, ...], finisher: str) -> None:
    """Cipher, key and sector size are changed, together or alone, and either program finishes it."""
    made = conversion("reencrypt", tmp_path / "volume", MIB, *options, old=("--sector-size", before))
    made.ours("--init-only")
    assert not steps(made, 5)
    made.check_as_it_is()
    if finisher == "ours":
        made.ours()
    else:
        made.theirs("--resume-only")
    made.check()
    segment = json_metadata(made.header)["segments"]["0"]
    wanted = dict(itertools.pairwise(options))
    assert segment["sector_size"] == int(wanted.get("--sector-size", before))
    assert segment["encryption"] == wanted.get("--cipher", "aes-xts-plain64")


@BY_MODE
@BY_RESILIENCE
@pytest.mark.needs("strace")
@pytest.mark.root
def test_cryptsetup_is_killed_anywhere(tmp_path: Path, mode: str, resilience: str) -> None:
    """
    Whatever cryptsetup leaves when it is killed, at any sync of header or payload, opens and is finished here.

    At its very end it leaves headers that it would itself take for the beginning, or cannot open any more.
    """
    begun = conversion(mode, tmp_path / "volume", 3 * ZONE, old=("--sector-size", "512"))
    begun.theirs("--resilience", resilience, "--init-only")
    stages: list[str] = []
    for call in ("fsync", "fdatasync"):
        for number in range(1, 60, EVERY):
            made = begun.copied(tmp_path / f"{call}-{number}")
            killed = made.killed_theirs(call, number, "--resume-only", "--hotzone-size", "64k")
            if not killed:
                break
            state = ReencryptionState.of(read_header(made.header, warn=False))
            stages.append("over" if state is None else state.stage.value)
            if stages[-1] not in ("over", "finished") or mode == "reencrypt":
                made.check_as_it_is() if state else made.check()
            if mode == "decrypt" and stages[-1] == "finished" and not made.opens_by_theirs():
                with pytest.raises(AssertionError, match="the header says that the data are decrypted"):
                    made.ours()
                assert made.payload.read_bytes() == made.plain
            elif state:
                made.ours()
                made.check()
    assert set(stages) >= ({"clean", "crashed", "finished"} if EVERY == 1 else {"crashed"}), stages


SHIFT = 512 << 10
"""What an encryption with an attached header moves the data by: the header's size."""


@pytest.mark.parametrize("finisher", ["ours", "theirs"])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_data_that_are_moved_to_make_room(tmp_path: Path, done: int, finisher: str) -> None:
    """An encryption that makes room for its header at the payload's start is read and finished, at any step."""
    made = conversion("encrypt", tmp_path / "volume", 8 * MIB).attached()
    made.theirs("--init-only", "--reduce-device-size", str(2 * SHIFT), "--luks2-keyslots-size", "256k")
    made = made.with_plain(made.plain[: 8 * MIB - 2 * SHIFT])
    assert not steps(made, done)
    made.check_as_it_is(writing=True)
    if finisher == "ours":
        made.ours()
    else:
        made.theirs("--resume-only")
    made.check(longer=True)


@pytest.mark.parametrize("finisher", ["ours", "theirs"])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_data_that_are_moved_to_where_the_header_was(tmp_path: Path, done: int, finisher: str) -> None:
    """A decryption of a volume with an attached header is read and finished, at any step."""
    made = conversion("encrypt", tmp_path / "volume", 8 * MIB).attached()
    made.theirs("--reduce-device-size", str(2 * SHIFT), "--luks2-keyslots-size", "256k")
    made = made.with_plain(made.plain[: 8 * MIB - 2 * SHIFT]).decrypted()
    made.theirs("--init-only", "--hotzone-size", "256k")
    assert not steps(made, done)
    made.check_as_it_is(writing=True)
    if finisher == "ours":
        made.ours()
    else:
        made.theirs("--resume-only")
    assert made.payload.read_bytes()[: len(made.plain)] == made.plain


def test_a_backup_of_another_stage_is_not_restored(tmp_path: Path) -> None:
    """A header from before, or from earlier on the way, would take the data with it; forced, it is put back."""
    made = conversion("reencrypt", tmp_path / "volume", MIB, old=("--sector-size", "512"))
    backups = [tmp_path / f"backup-{number}" for number in range(3)]

    def backed_up(backup: Path) -> str:
        done = lukshdrfs("header", "backup", made.header, "--header-backup-file", backup)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def restored(backup: Path, *options: str) -> int:
        return lukshdrfs("header", "restore", *options, made.header, "--header-backup-file", backup).returncode

    assert "converted" not in backed_up(backups[0])
    made.ours("--init-only")
    assert "good only as long as" in backed_up(backups[1])
    assert not steps(made, 3)
    backed_up(backups[2])
    assert not steps(made, 1)
    here = made.header.read_bytes()
    assert [restored(backup) for backup in backups] == [4, 4, 4]
    assert made.header.read_bytes() == here
    made.ours()
    assert [restored(backup) for backup in backups] == [4, 4, 4]
    made.check()
    assert restored(backups[0], "--force") == 0


@pytest.mark.parametrize("forgery", ["final cipher", "protection"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_forged_conversion_is_refused(tmp_path: Path, forgery: str, *, read_only: bool) -> None:
    """What nobody has vouched for who knows the keys is not acted upon (CVE-2021-4122); nothing is written."""
    made = conversion("reencrypt", tmp_path / "volume", MIB, old=("--sector-size", "512"))
    made.ours("--init-only")
    area = made.header.read_bytes()
    document = metadata(area)
    if forgery == "protection":
        keyslot = next(slot for slot in document["keyslots"].values() if slot["type"] == "reencrypt")
        size = keyslot["area"]["size"]
        keyslot["area"] = {"type": "journal", "offset": keyslot["area"]["offset"], "size": size}
    else:
        final = next(one for one in document["segments"].values() if one.get("flags") == ["backup-final"])
        final["encryption"] = "aes-cbc-essiv:sha256"
    made.header.write_bytes(with_metadata(area, document))
    before = made.payload.read_bytes(), made.header.read_bytes()
    with pytest.raises(HeaderError, match="forged or damaged"):
        open_volume(made.payload, header=made.header, passphrase=made.key.read_bytes(), read_only=read_only)
    with pytest.raises(AssertionError, match="forged or damaged"):
        made.ours()
    assert (made.payload.read_bytes(), made.header.read_bytes()) == before
