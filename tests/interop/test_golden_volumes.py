"""Volumes that cryptsetup, QEMU and the kernel's dm-crypt wrote: read exactly, or refused, and never changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from support.golden import GoldenVolume, golden_volumes
from support.mounts import Mounted, fuse_mounts, lukshdrfs
from support.plaintext import plaintext

import lukshdrfs as package

VOLUMES = golden_volumes()

REFUSED = {
    "luks1-aes-lrw-benbi": "the mode lrw",
    "luks2-xchacha20-adiantum": "the cipher Adiantum",
    "luks2-integrity-aead-chacha20": "integrity",
}
"""Rare volumes that we refuse, and why; each must be marked optional in the manifest."""

OPENED = sorted(name for name, volume in VOLUMES.items() if volume.expect == "open" and name not in REFUSED)
BROKEN = {"luks2-unknown-requirement": 4, "luks1-keyslot-damaged": 2, "luks1-version-3": 4}
"""Volumes that no key may open, with our exit code."""

UNBOUND_KEYS = [(name, index) for name in OPENED for index, key in enumerate(VOLUMES[name].keys) if key.unbound]


class Unpacked:
    """A golden volume in a folder, and what its files held at first."""

    def __init__(self, volume: GoldenVolume, folder: Path) -> None:
        self.header, self.payload = volume.unpack(folder)
        self._before = self._digests()

    def _digests(self) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.header, self.payload) if path]

    @property
    def unchanged(self) -> bool:
        return self._digests() == self._before

    @property
    def header_option(self) -> list[str | Path]:
        return ["--header", self.header] if self.header else []


def test_manifest_is_complete() -> None:
    """Every volume is either opened, refused as a rare one, or broken, so that none is left out by mistake."""
    assert len(VOLUMES) == 60
    assert {name for name, volume in VOLUMES.items() if volume.expect == "fail"} == set(BROKEN)
    assert all(VOLUMES[name].optional for name in REFUSED)
    assert UNBOUND_KEYS == [("luks2-unbound-keyslot", 1)]


@pytest.mark.parametrize("name", OPENED)
def test_opens_as_in_kernel(name: str, tmp_path: Path) -> None:
    """Every key that opens the volume shows the size and the plaintext that the kernel showed."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)
    keys = [key for key in volume.keys if key.opens]

    assert keys
    for key in keys:
        with package.open_volume(files.payload, header=files.header, passphrase=key.secret, read_only=True) as opened:
            assert opened.size == volume.volume_size
            data = bytes(opened.pread(volume.plaintext_size, offset=0))
        assert hashlib.sha256(data).hexdigest() == volume.plaintext_sha256
        assert data == plaintext(volume.plaintext_seed, volume.plaintext_size)
    assert files.unchanged


@pytest.mark.parametrize("name", OPENED)
def test_other_secrets_open_nothing(name: str, tmp_path: Path) -> None:
    """A secret that differs from the right one by a last newline is not the right one."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)

    with pytest.raises(package.LukshdrfsError) as caught:
        package.open_volume(files.payload, header=files.header, passphrase=volume.keys[0].secret + b"\n")
    assert caught.value.exit_code == 2
    assert files.unchanged


@pytest.mark.parametrize("name", REFUSED)
def test_rare_volume_is_refused(name: str, tmp_path: Path) -> None:
    """A volume that needs what we do not have is refused by its header, before any of its data is read."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)

    for key in volume.keys:
        with pytest.raises(package.LukshdrfsError) as caught:
            package.open_volume(files.payload, header=files.header, passphrase=key.secret)
        assert caught.value.exit_code == 4
    assert files.unchanged


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("name", [*REFUSED, *BROKEN])
def test_refusal_by_program(name: str, tmp_path: Path) -> None:
    """The program's exit code tells a wrong key from a header that cannot be used, and nothing is mounted."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()

    for key in volume.keys:
        done = lukshdrfs("mount", "--key-file", key.path, *files.header_option, files.payload, mountpoint)
        assert done.returncode == BROKEN.get(name, 4), done.stderr
        assert fuse_mounts(mountpoint) == []
    assert files.unchanged


@pytest.mark.parametrize(("name", "index"), UNBOUND_KEYS)
def test_unbound_keyslot_opens_nothing(name: str, index: int, tmp_path: Path) -> None:
    """The passphrase of a keyslot that holds another key is no wrong one, but there is no usable keyslot for it."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)

    done = lukshdrfs("mount", "--key-file", volume.keys[index].path, *files.header_option, files.payload, tmp_path)
    with pytest.raises(package.LukshdrfsError) as caught:
        package.open_volume(files.payload, header=files.header, passphrase=volume.keys[index].secret)
    assert caught.value.exit_code == 1
    assert done.returncode in {1, 4}  # 4: tmp_path is not empty, which may be found out first
    assert files.unchanged


@pytest.mark.parametrize("name", VOLUMES)
def test_info_shows_format(name: str, tmp_path: Path) -> None:
    """`info` works on every header that is one, whether we can open the volume or not, and changes nothing."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)

    done = lukshdrfs("info", "--json", *files.header_option, files.payload)

    if name == "luks1-version-3":
        assert done.returncode == 4
    else:
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert shown["type"] == volume.fields["format"]
        assert shown["detached"] is (files.header is not None)
        assert shown["payload"]["size"] == files.payload.stat().st_size
        assert shown["keyslots"]
        if name not in REFUSED and not shown["conversion"]:
            assert shown["cipher"] == volume.fields["cipher"]
            assert shown["sector_size"] == volume.fields["sector_size"]
            assert shown["key_size"] == volume.fields["key_bits"]
            assert shown["payload_offset"] == volume.fields["data_offset"]
    assert files.unchanged


@pytest.mark.needs("fuse")
@pytest.mark.parametrize(
    "name", ["luks1-aes-xts-512", "luks2-aes-xts-512-s4096", "luks2-attached", "luks2-detached-offset"]
)
def test_mounted_as_in_kernel(name: str, tmp_path: Path) -> None:
    """The mounted image is the volume, and reading it leaves header and payload as they were."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)

    with Mounted(files.payload, header=files.header, key_file=volume.keys[0].path) as mount:
        data = mount.image.read_bytes()
    assert len(data) == volume.volume_size
    assert hashlib.sha256(data[: volume.plaintext_size]).hexdigest() == volume.plaintext_sha256
    assert files.unchanged


@pytest.mark.parametrize("name", ["luks1-aes-cbc-essiv-128", "luks2-aes-xts-256-s1024", "luks2-serpent-xts-256"])
def test_rewriting_same_plaintext_changes_nothing(name: str, tmp_path: Path) -> None:
    """Encryption is the exact inverse: the kernel's plaintext written over itself gives the kernel's ciphertext."""
    volume = VOLUMES[name]
    files = Unpacked(volume, tmp_path)
    data = plaintext(volume.plaintext_seed, volume.plaintext_size)

    with package.open_volume(files.payload, header=files.header, passphrase=volume.keys[0].secret) as opened:
        opened.pwrite(bytes(len(data)), offset=0)
        opened.flush()
        assert not files.unchanged
        opened.pwrite(data, offset=0)
        opened.flush()
    assert files.unchanged
