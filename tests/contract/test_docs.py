"""Documentation and code cite what is there: every path exists, and every test that a page names is one."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.paths import ROOT

PAGES = sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)\s]*)?\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")
PATH = re.compile(r"`((?:stages|flows|infra|tests|containers|benchmarks|docs)/[\w./-]+)`")

CITED = re.compile(
    r"(?<![\w/.<-])((?:stages|flows|infra|tests|containers|benchmarks|docs)/[\w./-]*\w\.(?:py|md|toml|sh|yaml|json|lock))\b"
)
FOREIGN = {"docs/tulu3.md"}
"""Paths in the repositories of others: open-instruct's recipe."""


def read(page: str) -> str:
    """A page; of the changelog what is not released yet, since its history names what was there then."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.split(r"^## \d", text, maxsplit=1, flags=re.MULTILINE)[0] if page == "CHANGELOG.md" else text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = read(page)
    missing = [link for link in LINK.findall(text) if not ((ROOT / page).parent / link).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing


def test_paths_that_code_and_readmes_cite_exist() -> None:
    """In comments, messages and READMEs, without links. Guides and tests write files of their own."""
    folders = ("benchmarks", "containers", "flows", "infra", "stages")
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    missing = {
        f"{name}: {path}"
        for name in listed.split()
        if name.endswith((".md", ".py", ".sh", ".toml", ".yaml", ".yml")) and (ROOT / name).is_file()
        for path in CITED.findall((ROOT / name).read_text(encoding="utf-8"))
        if path not in FOREIGN and not (ROOT / path).exists()
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page: str) -> None:
    for file, name in TEST.findall(read(page)):
        assert (ROOT / file).is_file(), file
        assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{file}::{name}"
        )


def test_the_list_of_bug_reports_has_the_ten_that_were_looked_up() -> None:
    text = (ROOT / "docs" / "bug_reports.md").read_text(encoding="utf-8")
    assert len(set(re.findall(r"[\w.-]+/[\w.-]+#\d+", text))) >= 40
    assert text.count("right already") >= 10
