"""What a transport promises to the lane, tried on each: how requests come from the kernel, how answers get there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.native import SANITIZERS, compile_native

pytestmark = [pytest.mark.needs("gcc", "pkg-config")]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("transport", ["dev_fuse"])
def test_a_transport_keeps_its_promises(transport: str, sanitizer: str, tmp_path: Path) -> None:
    """Requests whole and in their place, answers as one message each, waits that a signal ends, an end that stays."""
    target = tmp_path / "transport_contract"
    compile_native(
        target, Path(__file__).with_name("transport_contract.c"), f"fuse/lane/{transport}",
        options=SANITIZERS[sanitizer],
    )  # fmt: skip
    done = subprocess.run([target], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "all as promised\n"), done.stderr
