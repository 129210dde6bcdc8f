"""What the documentation shows works: every shell and Python block of the README is run, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.needs("fuse", "mkfs.ext4")
def test_blocks_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    """A reader who types the README's blocks one after the other meets no error."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert [language for language, _ in blocks] == ["sh", "python"]
    for language, text in blocks:
        command = ["bash", "-euxc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_everything_the_documentation_links_to_is_there() -> None:
    """No link in a document leads to a file that does not exist."""
    root = README.parent
    documents = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("benchmarks/*.md")]
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
    ]
    assert len(links) > 3
    assert [(document.name, link) for document, link in links if not (document.parent / link).exists()] == []
