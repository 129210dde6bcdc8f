"""Numbers, sizes, times and owners are read as people write them for dd, qemu-img, cryptsetup, systemd and mount."""

from __future__ import annotations

import argparse
import grp
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lukshdrfs.cli.commands.mount.fstab_options import apply_options
from lukshdrfs.cli.main import build_parser
from lukshdrfs.cli.quantities import group, kibibytes, milliseconds, seconds, size, user
from lukshdrfs.errors import UsageError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("512", 512), ("512B", 512), ("1K", KIB), ("1k", KIB), ("1KiB", KIB), ("1Ki", KIB), ("1kib", KIB),
        ("1KB", 1000), ("1kB", 1000), ("2M", 2 * MIB), ("2MiB", 2 * MIB), ("2MB", 2_000_000), ("3G", 3 * GIB),
        ("3GiB", 3 * GIB), ("3GB", 3 * 10**9), ("1T", TIB), ("1TB", 10**12), ("1P", 1 << 50), ("1E", 1 << 60),
        ("1.5G", 3 * GIB // 2), ("0.5KiB", 512), ("1.5kB", 1500), ("9223372036854775807", (1 << 63) - 1),
    ],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    """K, M, G and KiB, MiB, … are powers of 1024, KB, MB, … are powers of 1000."""
    assert size(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "K", "M1", "-1", "+1", "1 M", " 1", "1X", "1KiBB", "1iB", "1MM", "0x10", "1e3", "1_000", "1,5G", "1.", ".5",
     "1.0001K", "0.5", "9223372036854775808", "8E", "9" * 30, "\u0661", "1K\n", "one"],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    """Anything else is refused, and what was written is in the message."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        size(text)
    assert repr(text[:40]) in str(caught.value)


@pytest.mark.parametrize(("text", "way_out"), [("512b", "512B"), ("8s", "bytes"), ("8S", "bytes")])
def test_sizes_with_two_meanings(text: str, way_out: str) -> None:
    """What one program takes for blocks and another for bytes is refused, not guessed."""
    with pytest.raises(argparse.ArgumentTypeError, match=way_out):
        size(text)


@pytest.mark.parametrize(("text", "expected"), [("64", 64), ("1M", 1024), ("1GiB", MIB), ("1024B", 1), ("64K", 64)])
def test_memory_is_counted_in_kib(text: str, expected: int) -> None:
    """A number alone is KiB, as for cryptsetup; with a unit it is what it says."""
    assert kibibytes(text) == expected


@pytest.mark.parametrize("text", ["1B", "1KB", "1025B"])
def test_memory_is_whole_kib(text: str) -> None:
    """Less cannot be had."""
    with pytest.raises(argparse.ArgumentTypeError, match="KiB"):
        kibibytes(text)


TIMES = [
    ("2s", 2.0), ("2sec", 2.0), ("2seconds", 2.0), ("500ms", 0.5), ("2m", 120.0), ("2min", 120.0), ("1h", 3600.0),
    ("1hour", 3600.0), ("1d", 86400.0), ("1h30m", 5400.0), ("1min 30s", 90.0), ("1.5h", 5400.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TIMES)
def test_times(text: str, expected: float) -> None:
    """With a unit, a time is the same wherever it is asked for; units can be put together."""
    assert seconds(text) == expected
    assert milliseconds(text) == expected * 1000


def test_times_without_a_unit() -> None:
    """A number alone is in the unit that the option is documented with."""
    assert seconds("2") == 2.0
    assert seconds("0.25") == 0.25
    assert milliseconds("2000") == 2000


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-1", "s", "1x", "2S", "1M", "1h30", "s1", "1..5s", "inf", "nan", "1e9", "9" * 20]
)
def test_what_is_no_time(text: str) -> None:
    """Anything else is refused, so is a time that is none, or never over."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        seconds(text)
    assert repr(text) in str(caught.value)


def test_milliseconds_are_whole() -> None:
    """Key derivation is not measured more finely."""
    with pytest.raises(argparse.ArgumentTypeError, match="whole"):
        milliseconds("0.5ms")


@given(st.integers(1, 1 << 40), st.sampled_from(["", "B", "K", "MiB", "GB"]))
def test_units_multiply(count: int, unit: str) -> None:
    """A number with a unit is so many times that unit."""
    factor = {"": 1, "B": 1, "K": KIB, "MiB": MIB, "GB": 10**9}[unit]
    if count * factor < 1 << 63:
        assert size(f"{count}{unit}") == count * factor


def test_owners_by_number_and_by_name() -> None:
    """`uid=` and `gid=` take names, as mount(8) does."""
    root = pwd.getpwuid(0).pw_name
    assert (user("1000"), group("1001")) == (1000, 1001)
    assert user(root) == 0
    entry = grp.getgrall()[-1]
    assert group(entry.gr_name) == entry.gr_gid


@pytest.mark.parametrize("text", ["", "no such user", "-1", str((1 << 32) - 1), "9" * 25, "\0", "x\0y"])
def test_nobodys_names(text: str) -> None:
    """What is nobody's is refused."""
    for read in (user, group):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)


def parsed(*words: str) -> argparse.Namespace:
    """Return the arguments of a command line, with its `-o` applied."""
    arguments = build_parser().parse_args(list(words))
    if "options" in arguments:
        arguments.kernel_options = []
        apply_options(arguments, arguments.options)
    return arguments


CREATE, MOUNT = ("create", "payload"), ("mount", "payload", "mountpoint")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ((*CREATE, "--size", "1MiB"), "size", MIB),
        ((*CREATE, "--size", "1MB"), "size", 10**6),
        ((*CREATE, "--offset", "1MiB"), "offset", MIB),
        ((*CREATE, "--sector-size", "4K"), "sector_size", 4096),
        ((*CREATE, "--luks2-metadata-size", "64KiB"), "luks2_metadata_size", 64 * KIB),
        ((*CREATE, "--keyfile-size", "1K"), "keyfile_size", KIB),
        ((*CREATE, "--iter-time", "2s"), "iter_time", 2000),
        ((*CREATE, "--pbkdf-memory", "64MiB"), "pbkdf_memory", 64 * KIB),
        (("benchmark", "-i", "500ms"), "iter_time", 500),
        (("key", "add", "h", "--new-keyfile-offset", "1KiB"), "new_keyfile_offset", KIB),
        ((*MOUNT, "--size", "1GB"), "size", 10**9),
        ((*MOUNT, "--max-time", "1h30m"), "max_time", 5400.0),
        ((*MOUNT, "-o", "size=1MiB"), "size", MIB),
        ((*MOUNT, "-o", "keyfile-offset=1K"), "keyfile_offset", KIB),
        ((*MOUNT, "-o", "idle-timeout=2min"), "idle_timeout", 120.0),
        ((*MOUNT, "-o", "uid=root,gid=root"), "uid", 0),
    ],
)
def test_every_option_reads_them_alike(words: tuple[str, ...], name: str, value: object) -> None:
    """On the command line and behind `-o`."""
    assert getattr(parsed(*words), name) == value


@pytest.mark.parametrize("option", ["size=512b", "uid=no-such-user", "gid=no-such-group", "max-time=1x"])
def test_a_mount_option_that_cannot_be_read(option: str) -> None:
    """The option and what was written are named."""
    with pytest.raises(UsageError) as caught:
        parsed(*MOUNT, "-o", option)
    assert option.partition("=")[0] in str(caught.value)
    assert option.partition("=")[2] in str(caught.value)
