"""The fast lane against Python: two mounts of equal volumes, the same operations, the same bytes and errors."""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import luks2_edit
from support.cryptsetup import XTS_512, XTS_4096, LuksFiles
from support.golden import golden_volumes
from support.mounts import Mounted, read_attribute
from support.volumes import MIB, MakeVolume

pytestmark = [pytest.mark.needs("fuse", "cryptsetup")]

BLOCK = 512


class Twin:
    """An open image of either mount."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.buffered = os.open(mount.image, os.O_RDWR)
        self.direct = os.open(mount.image, os.O_RDWR | os.O_DIRECT)
        self.size = os.fstat(self.buffered).st_size

    def close(self) -> None:
        os.close(self.buffered)
        os.close(self.direct)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.buffered, size, offset)

    def write(self, offset: int, size: int, seed: int) -> int:
        return os.pwrite(self.buffered, contents(seed, size), offset)

    def read_direct(self, offset: int, size: int) -> bytes:
        size = -(-max(size, 1) // BLOCK) * BLOCK
        with mmap.mmap(-1, size) as memory:
            count = os.preadv(self.direct, [memory], offset // BLOCK * BLOCK)
            return memory[:count]

    def write_direct(self, offset: int, size: int, seed: int) -> int:
        size = -(-max(size, 1) // BLOCK) * BLOCK
        with mmap.mmap(-1, size) as memory:
            memory[:] = contents(seed, size)
            return os.pwritev(self.direct, [memory], offset // BLOCK * BLOCK)

    def store(self, offset: int, size: int, seed: int) -> None:
        """Write through a shared map."""
        offset = min(offset, self.size - 1)
        size = min(size, self.size - offset)
        with mmap.mmap(self.buffered, self.size) as memory:
            memory[offset : offset + size] = contents(seed, size)

    def sync(self) -> None:
        os.fsync(self.buffered)

    def truncate(self, offset: int) -> None:
        os.ftruncate(self.buffered, offset)

    def drop_cache(self) -> None:
        os.posix_fadvise(self.buffered, 0, 0, os.POSIX_FADV_DONTNEED)

    def preallocate(self, offset: int, size: int) -> None:
        """No path may grow the image for it; the fast lane alone has more of fallocate(2)."""
        os.posix_fallocate(self.buffered, self.size + offset, size + 1)


def contents(seed: int, size: int) -> bytes:
    """Return bytes that differ from place to place and from seed to seed."""
    pattern = bytes((seed + at * 7 + at // 251) & 0xFF for at in range(4001))
    return (pattern * (size // len(pattern) + 1))[:size]


def outcome(work: Callable[[], object]) -> object:
    """Return what came of a system call: its result, or its errno."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@contextlib.contextmanager
def twins(files: LuksFiles, folder: Path, *options: str) -> Iterator[tuple[Twin, Twin]]:
    """Mount two copies of a volume, one over either data path."""
    pair = []
    with contextlib.ExitStack() as stack:
        for path in ("native", "python"):
            copy = folder / f"{path}.img"
            copy.write_bytes(files.payload.read_bytes())
            mountpoint = folder / f"mnt-{path}"
            mountpoint.mkdir(exist_ok=True)
            header = files.header if files.header.exists() else None
            mount = stack.enter_context(
                Mounted(
                    copy, "--data-path", path, *options, header=header, key_file=files.key_file, mountpoint=mountpoint
                )
            )
            assert read_attribute(mount.image, "data_path") == path
            twin = Twin(mount)
            stack.callback(twin.close)
            pair.append(twin)
        yield pair[0], pair[1]


def compare(pair: tuple[Twin, Twin], name: str, *arguments: int) -> None:
    """
    Do the same to both.

    A direct write across the end is the one exception. Both write what fits; but the kernel, which can do more with
    the fast lane's direct writes, turns a short one into EIO over Python (Linux, fs/fuse/file.c, fuse_get_res_by_io).
    """
    first, second = (outcome(functools.partial(getattr(twin, name), *arguments)) for twin in pair)
    if name == "write_direct" and first != second:
        assert second == "EIO"
        assert first == pair[0].size - arguments[0] // BLOCK * BLOCK
        return
    assert first == second, f"{name}{arguments}"


def compare_whole(pair: tuple[Twin, Twin]) -> None:
    """Compare all the plaintext, and all the ciphertext, for the keys are the same."""
    for twin in pair:
        twin.sync()
        twin.drop_cache()
    assert pair[0].mount.image.read_bytes() == pair[1].mount.image.read_bytes()
    assert pair[0].mount.payload.read_bytes() == pair[1].mount.payload.read_bytes()


def operations(volume_size: int, *, maps: bool) -> st.SearchStrategy[list[tuple[str, tuple[int, ...]]]]:
    """Return sequences of operations, with shared `maps` or not, many at the bounds of sectors, pages and volume."""
    near = st.sampled_from([0, 512, 4096, 8192, 65536, volume_size // 2, volume_size - 4096, volume_size])
    offset = st.one_of(
        st.integers(0, volume_size + 8192), st.builds(lambda at, by: max(0, at + by), near, st.integers(-3, 3))
    )
    size = st.one_of(st.integers(0, 3 * 4096), st.sampled_from([0, 1, 511, 512, 513, 4095, 4096, 4097, 131072, 300000]))
    seed = st.integers(0, 255)
    writes = ["write", "write_direct", *(["store"] if maps else [])]
    return st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["read", "read_direct"]), st.tuples(offset, size)),
            st.tuples(st.sampled_from(writes), st.tuples(offset, size, seed)),
            st.tuples(st.sampled_from(["sync", "drop_cache"]), st.just(())),
            st.tuples(st.just("truncate"), st.tuples(offset)),
            st.tuples(st.just("preallocate"), st.tuples(offset, size)),
        ),
        min_size=1,
        max_size=25,
    )


SIZE = MIB


def run(files: LuksFiles, folder: Path, size: int, examples: int, *options: str) -> None:
    """Compare after random sequences of operations."""
    with twins(files, folder, *options) as pair:
        # without a cache, files can be mapped over the fast lane only: libfuse does not ask the kernel for that
        maps = "none" not in options

        @given(sequence=operations(size, maps=maps))
        @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
        def same(sequence: list[tuple[str, tuple[int, ...]]]) -> None:
            for name, arguments in sequence:
                compare(pair, name, *arguments)
            compare_whole(pair)

        same()


@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
@pytest.mark.parametrize("layout", [XTS_512, XTS_4096], ids=lambda layout: str(layout.id))
def test_random_operations(layout: object, cache: str, make_volume: MakeVolume, tmp_path: Path) -> None:
    """Whatever is done to both images, both answer the same, and both payloads hold the same ciphertext."""
    files = make_volume(XTS_512 if layout is XTS_512 else XTS_4096, size=SIZE)
    run(files, tmp_path, SIZE, 20, "--cache", cache)


CIPHERS = {
    tuple(volume.fields[name] for name in ("cipher", "key_bits", "sector_size")): volume
    for volume in golden_volumes().values()
    if volume.expect == "open" and volume.payload_file and not volume.name.endswith(("-half", "-init"))
}
"""But for volumes that are half-converted: two of one UUID are never open at once."""


@pytest.mark.parametrize("kind", CIPHERS, ids=lambda kind: "-".join(map(str, kind)))
def test_every_cipher(kind: tuple[object, ...], tmp_path: Path) -> None:
    """So it is with every cipher, key size and sector size of the volumes that other programs made."""
    volume = CIPHERS[kind]
    _, payload = volume.unpack(tmp_path)
    key = next(key for key in volume.keys if key.opens)
    run(LuksFiles(payload, tmp_path / "header.img", key.path), tmp_path, volume.volume_size, 3)


def test_several_segments(make_volume: MakeVolume, tmp_path: Path) -> None:
    """A volume of several segments, one of them unencrypted, each with its own sector size and first IV."""
    files = make_volume(XTS_512, size=SIZE)

    def split(changed: luks2_edit.Json) -> None:
        whole = changed["segments"]["0"]
        first, third = 512 * 301, 4096 * 40
        changed["segments"] = {
            "0": {**whole, "offset": "0", "size": str(first)},
            "1": {"type": "linear", "offset": str(first), "size": str(third)},
            "2": {**whole, "offset": str(first + third), "size": "dynamic", "iv_tweak": "8", "sector_size": 4096},
        }
        changed["digests"]["0"]["segments"] = ["0", "2"]

    luks2_edit.edit(files.header, split)
    run(files, tmp_path, SIZE - (SIZE - 512 * 301) % 4096, 20)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_payload_that_is_cut_off(cache: str, make_volume: MakeVolume, tmp_path: Path) -> None:
    """When the payload is cut off under the mounts, both answer the same errors, and serve what is left."""
    files = make_volume(XTS_4096, size=SIZE)
    with twins(files, tmp_path, "--cache", cache) as pair:
        for twin in pair:
            os.truncate(twin.mount.payload, SIZE // 2 + 5000)
        for offset in (0, SIZE // 2 - 100, SIZE // 2 + 4096, SIZE // 2 + 8192, SIZE - 4096):
            compare(pair, "read_direct", offset, 4096)
            compare(pair, "read", offset, 100)
        assert outcome(lambda: pair[0].read_direct(SIZE - 4096, 4096)) == "EIO"
        compare(pair, "write_direct", 4096, 512, 1)
        compare(pair, "write_direct", SIZE // 2 + 8192, 512, 1)
        compare(pair, "read_direct", 4096, 4096)


def test_read_only(make_volume: MakeVolume, tmp_path: Path) -> None:
    """Read-only mounts read the same."""
    files = make_volume(XTS_512, size=SIZE)
    files.payload.write_bytes(os.urandom(SIZE))
    images = []
    for path in ("native", "python"):
        with Mounted(
            files.payload, "--read-only", "--data-path", path, header=files.header, key_file=files.key_file
        ) as mount:
            assert outcome(functools.partial(os.open, mount.image, os.O_RDWR)) == "EROFS"
            images.append(mount.image.read_bytes())
    assert images[0] == images[1]
