"""`lukshdrfs benchmark`: what it measures, and what it refuses."""

from __future__ import annotations

import json

import pytest

from lukshdrfs.cli.commands import benchmark
from lukshdrfs.cli.main import run


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_CIPHER_SECONDS", 0.001)
    monkeypatch.setattr("lukshdrfs.luks.keys.kdf_cost._TRIAL_ITERATIONS", 1000)
    monkeypatch.setattr("lukshdrfs.luks.keys.kdf_cost._TRIAL_MEMORY_KIB", 1024)


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[dict[str, object]]]:
    """Return what the command says as JSON."""
    assert run(["benchmark", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_everything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Left alone, it measures each KDF and each usual cipher, with either sector size; all figures are above 0."""
    found = document(capsys, "--iter-time", "10")

    assert {str(row["kdf"]) for row in found["kdfs"]} == {"pbkdf2", "argon2i", "argon2id"}
    assert len(found["ciphers"]) == len(benchmark.CIPHERS) * 2
    for row in found["ciphers"]:
        assert isinstance(row["encryption_mib_per_second"], float)
        assert row["encryption_mib_per_second"] > 0
        assert isinstance(row["decryption_mib_per_second"], float)
        assert row["decryption_mib_per_second"] > 0


@pytest.mark.parametrize(
    ("words", "kdfs", "ciphers"),
    [
        (["-c", "aes-xts-plain64"], [], [("aes-xts-plain64", 512, 512), ("aes-xts-plain64", 512, 4096)]),
        (
            ["-c", "cast5-cbc-plain64", "--sector-size", "1024"],
            [],
            [("cast5-cbc-plain64", 128, 1024)],
        ),
        (
            ["-c", "aes-xts-plain64", "-s", "256", "--sector-size", "512"],
            [],
            [("aes-xts-plain64", 256, 512)],
        ),
        (["--hash", "sha512"], [("pbkdf2", "sha512")], []),
        (["--pbkdf", "pbkdf2"], [("pbkdf2", "sha256")], []),
        (["--pbkdf", "argon2id", "-i", "10"], [("argon2id", None)], []),
    ],
)
def test_one_thing_is_measured(
    words: list[str],
    kdfs: list[tuple[str, str | None]],
    ciphers: list[tuple[str, int, int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is named is measured, and nothing else."""
    found = document(capsys, *words)

    assert [(row["kdf"], row.get("hash")) for row in found["kdfs"]] == kdfs
    assert [(row["cipher"], row["key_bits"], row["sector_size"]) for row in found["ciphers"]] == ciphers


def test_text_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """For people, each figure is a line with its unit."""
    assert run(["benchmark", "-c", "aes-xts-plain64", "--hash", "sha256"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in lines] == ["#", "pbkdf2-sha256", "aes-xts-plain64", "aes-xts-plain64"]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-c", "rot13"], 4),
        (["-c", "aes-xts-plain64", "-s", "100"], 1),
        (["-c", "aes-xts-plain64", "-s", "128"], 4),
        (["-s", "256"], 1),
        (["-c", "aes-xts-plain64", "--sector-size", "1000"], 4),
        (["--hash", "crc32"], 4),
        (["--pbkdf", "scrypt"], 1),
        (["--iter-time", "0", "--pbkdf", "argon2id"], 1),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not implemented is named in one line."""
    assert run(["benchmark", *words]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1
