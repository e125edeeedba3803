"""`make docs`: the site builds without a warning, and no page fetches anything from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.guides import ROOT
from tests.support.limits import HANG

FETCHED = re.compile(r"<(?:script|img|iframe)[^>]*\bsrc=\"(https?:[^\"]*)|<link[^>]*\bhref=\"(https?:[^\"]*)")


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    pages = {p.relative_to(tmp_path / "site").as_posix(): p.read_text() for p in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "design.html", "how_to/add_a_stage.html", "code/stages/pretrain/index.html"} <= pages.keys()
    fetched = {page: found for page, text in pages.items() if (found := FETCHED.findall(text))}
    assert fetched == {}
    assert 'href="how_to/add_a_stage.html"' in pages["index.html"], "links between pages lead there"
    assert "stages/length/spec.py" in pages["how_to/add_a_stage.html"], "a block says which file it is"
