"""The documentation cites what is there: every path exists, and every test that a page names is one."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

PAGES = sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)\s]*)?\)")
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")
PATH = re.compile(r"`((?:stages|flows|infra|tests|containers|benchmarks|docs)/[\w./-]+)`")


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
