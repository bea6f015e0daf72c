"""Every Python block of the README and of docs/ runs, in order, file by file; none is left out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from haive_persistence.db.embedded import EmbeddedServer

ROOT = Path(__file__).parents[1]
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in TEXTS if "\n```python\n" in page.read_text()]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {"sh", "sql", "text"}


def blocks(page: Path) -> list[str]:
    found = BLOCK.findall(page.read_text())
    unknown = {language for language, _ in found} - NOT_RUN - {"python"}
    assert not unknown, f"{page.name} has blocks in {unknown}: say python, sh, sql or text"
    return [code for language, code in found if language == "python"]


@pytest.mark.usefixtures("pgvector")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run(page: Path, dsn: str, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(page)
    assert code, f"{page.name} shows no Python"
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.setenv("HAIVE_DATA_DIR", str(server.root))
    monkeypatch.setenv("AGENTS_KEY", "00" * 32)
    monkeypatch.setenv("AGENTS_NEW_KEY", "11" * 32)
    program = "\n\n".join(code)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_files_that_are_named_exist() -> None:
    for page in TEXTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_demo_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sent to bob@example.com" in done.stdout
    assert "kept: 10 messages" in done.stdout
