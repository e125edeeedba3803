"""CITATION.cff: what the Citation File Format 1.2.0 requires, and the same version and licence as the package."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from stages.core.files import ROOT

CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = ("cff-version", "message", "title", "authors")
ALLOWED = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
"""The top level's keys (citation-file-format 1.2.0, schema guide)."""
PERSON = {"family-names", "given-names", "alias", "name"}


def test_it_has_what_the_format_requires_and_nothing_that_it_does_not_know() -> None:
    assert all(CITATION.get(key) for key in REQUIRED)
    assert set(CITATION) <= ALLOWED
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] in ("software", "dataset")
    for author in CITATION["authors"]:
        assert PERSON & author.keys()


def test_it_names_this_version_and_licence() -> None:
    assert (CITATION["version"], CITATION["license"]) == (PROJECT["version"], PROJECT["license"])


def test_it_cites_the_paper() -> None:
    (paper,) = CITATION["references"]
    assert paper["type"] == "article"
    assert all(paper[key] for key in ("title", "authors", "year"))
    (number,) = {m[0] for i in paper["identifiers"] for m in re.finditer(r"\d{4}\.\d{5}", i["value"])}
    assert number in paper["url"]
    assert all(i["type"] in ("doi", "url", "swh", "other") for i in paper["identifiers"])
