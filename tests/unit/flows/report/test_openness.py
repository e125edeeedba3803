"""The section on openness: what the released folders' papers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.release import mof_classes, mof_evidence
from flows.report import openness as section

DIGEST = "d" * 64


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two releases: one of all components but the data, one that is cut."""
    rows = [{"name": c.name, "component_path": "x/<y>", "license": "MIT"} for c in mof_classes.facts().component]
    value = {"release": {"license": {}, "components": [row for row in rows if row["name"] != "Datasets"]}}
    for name, text in (("Moxin-LLM", yaml.safe_dump(value)), ("Moxin-VLM", "release: [")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "release.json").write_text(json.dumps({"node": "pretrain_3", "digest": DIGEST}))
        (folder / mof_classes.FILE).write_text(text)
    (tmp_path / "data").mkdir()
    return tmp_path


def data(out: Path, digest: str) -> dict[str, Any]:
    result = {"outputs": {"model": {"digest": digest}}}
    return {"nodes": [{"name": "pretrain_3", "result": result}], "releases": mof_evidence.released(out)}


def test_the_class_and_what_the_next_one_lacks(out: Path) -> None:
    made = section.section(data(out, DIGEST))
    assert made is not None
    for text in ("Class II: open tooling", "Datasets: not there", "x/&lt;y&gt;", "its papers cannot be read"):
        assert text in made.body, text
    assert "of another result" not in made.body
    assert section.summary(data(out, DIGEST)) == ["openness: Moxin-LLM Class II"]


def test_a_release_of_another_result_is_told_apart(out: Path) -> None:
    made = section.section(data(out, "e" * 64))
    assert made is not None
    assert "of another result" in made.body


def test_nothing_released(tmp_path: Path) -> None:
    assert section.section(data(tmp_path, DIGEST)) is None
    assert section.section({"nodes": []}) is None
    assert section.summary({"nodes": []}) == []
