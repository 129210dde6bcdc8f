"""What the documentation shows works: every shell and Python block is run, page by page and in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GENERATED_BY = (3, 11)
"""The Python whose argparse the generated pages were made with: its wording differs between versions."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each block that is run."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def run_page(page: Path, folder: Path) -> None:
    """Type a page's blocks one after the other."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"}
    shell = "\n".join(text for language, text in blocks(page) if language == "sh")
    texts = [("sh", shell), *((language, text) for language, text in blocks(page) if language == "python")]
    for language, text in texts:
        command = ["bash", "-euxmc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.needs("fuse", "mkfs.ext4")
def test_readme(tmp_path: Path) -> None:
    """A reader who types the README's blocks one after the other meets no error."""
    assert [language for language, _ in blocks(ROOT / "README.md")] == ["sh", "python"]
    run_page(ROOT / "README.md", tmp_path)


@pytest.mark.needs("fuse", "mkfs.ext4", "debugfs")
@pytest.mark.parametrize("name", ["tutorial", "headers", "control"])
def test_pages_that_need_no_root(name: str, tmp_path: Path) -> None:
    """So does a reader of these pages."""
    run_page(ROOT / f"docs/{name}.md", tmp_path)


@pytest.mark.needs("fuse", "qemu-img", "qemu-nbd", "qemu-storage-daemon")
def test_network_storage(tmp_path: Path) -> None:
    """And of the page about images and network storage."""
    run_page(ROOT / "docs/network.md", tmp_path)


@pytest.mark.needs("fuse", "qemu-img", "qemu-io")
def test_virtual_machines(tmp_path: Path) -> None:
    """And of the page about virtual machines."""
    run_page(ROOT / "docs/vm.md", tmp_path)


@pytest.mark.needs("fuse", "qemu-img", "mkfs.ext4")
def test_bringing_a_disk_in(tmp_path: Path) -> None:
    """And of the page about bringing a disk in."""
    run_page(ROOT / "docs/bring-in.md", tmp_path)


@pytest.mark.needs("fuse", "mkfs.ext4")
def test_converting(tmp_path: Path) -> None:
    """And of the page about converting in place."""
    run_page(ROOT / "docs/convert.md", tmp_path)


@pytest.mark.root
@pytest.mark.needs("fuse", "loop", "mkfs.ext4")
def test_workstation(tmp_path: Path) -> None:
    """And, as root, of the page about workstations."""
    if os.path.lexists("/sbin/mount.lukshdrfs"):
        pytest.skip("lukshdrfs is installed on this machine: its mount helper is not touched")
    run_page(ROOT / "docs/workstation.md", tmp_path)


def test_every_page_with_blocks_is_run() -> None:
    """No page is left out."""
    pages = {page.stem for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if blocks(page)}
    assert pages == {"README", "tutorial", "headers", "control", "network", "vm", "workstation", "bring-in", "convert"}


def test_everything_the_documentation_links_to_is_there() -> None:
    """No link in a document leads to a file that does not exist."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    ]
    assert len(links) > 3
    assert [(document.name, link) for document, link in links if not (document.parent / link).exists()] == []


@pytest.mark.skipif(sys.version_info[:2] != GENERATED_BY, reason="another Python's argparse words them otherwise")
def test_generated_pages_are_current() -> None:
    """Manual pages and shell completion say what the parsers say."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stderr}; run docs/generate.py"


@pytest.mark.parametrize("page", ["lukshdrfs.1", "mount.lukshdrfs.8"])
@pytest.mark.needs("man")
def test_manual_pages_are_sound(page: str) -> None:
    """groff has no complaint about them."""
    done = subprocess.run(
        ["man", "--warnings", "-l", ROOT / "docs/man" / page],
        capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert "EXIT STATUS" in done.stdout


@pytest.mark.parametrize(
    "shell",
    [
        "bash",
        pytest.param("zsh", marks=pytest.mark.needs("zsh")),
        pytest.param("fish", marks=pytest.mark.needs("fish")),
    ],
)
def test_shells_take_the_completion(shell: str) -> None:
    """Each shell reads its completion without a complaint; in bash, it completes the commands."""
    name = {"bash": "lukshdrfs", "zsh": "_lukshdrfs", "fish": "lukshdrfs.fish"}[shell]
    script = ROOT / "docs/completion" / name
    if shell != "bash":
        done = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return
    ask = 'COMP_WORDS=(lukshdrfs header ""); COMP_CWORD=2; _shtab_lukshdrfs; echo "${COMPREPLY[@]}"'
    command = ["bash", "-euc", f'source "{script}"; {ask}']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert {"backup", "restore", "verify", "repair"} <= set(done.stdout.split()), done.stderr
