"""The report of the vision-language model: scores beside their blind control and the paper's, and pictures that stay
text-safe.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flows.report import read_pictures, vision_tables
from flows.report.data import Data
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.keys import sha256
from stages.core.ledger import Ledger

HOSTILE = "<script>alert(1)</script>\"'>&amp;"
PICTURE = "data:image/jpeg;base64,/9j/"


def score(task: str, value: float, gain: float, error: float | None) -> dict[str, Any]:
    control = {"name": "blind", "value": value - gain, "stderr": 0.03, "gain": gain, "gain_stderr": error}
    return {
        "task": task,
        "metric": "acc",
        "headline": True,
        "value": value,
        "stderr": 0.02,
        "n": 200,
        "note": "",
        "comparable_to_paper": True,
        "toy": False,
        "num_fewshot": 0,
        "table": "table_8",
        "column": vision_tables.COLUMNS[task],
        "control": control,
    }


def picture(**changes: Any) -> dict[str, Any]:
    row = {
        "file": "pictures/gqa-0.jpg",
        "benchmark": "gqa",
        "question": "What color?",
        "answer": "red",
        "truth": "red",
        "score": 1.0,
        "blind_answer": "blue",
    }
    return row | {"picture": PICTURE} | changes


def data(results: list[dict[str, Any]], pictures: list[dict[str, Any]]) -> Data:
    made = {"results": results, "aggregates": [{"suite": "visual", "value": 0.5, "stderr": 0.01, "tasks": 7}]}
    return {"nodes": [{"name": "evaluate_vlm", "reports": {"report": made} if results else {}, "pictures": pictures}]}


WRITTEN = {"generation": {"do_sample": False, "max_new_tokens": 128}, "metric": "exact_match"}
RESULTS = [score("gqa", 0.75, 0.47, 0.04) | WRITTEN, score("vsr", 0.5, 0.02, 0.04), score("tally-qa", 0.6, 0.1, None)]


def test_scores_stand_beside_the_control_and_the_paper() -> None:
    section = vision_tables.section(data(RESULTS, []))
    assert section is not None
    text = " ".join(re.sub("<[^>]*>", " ", section.body).split())
    assert "75.0 ± 2.0 28.0 ± 3.0 +47.0 yes 64.88" in text
    assert "50.0 ± 2.0 48.0 ± 3.0 +2.0 no 60.80" in text
    assert "Average 50.0 –" in text  # three of seven benchmarks: no average of the paper
    whole = vision_tables.section(data([score(task, 0.5, 0.1, 0.04) for task in vision_tables.COLUMNS], []))
    assert whole is not None
    assert "64.68" in whole.body  # the paper's average, computed anew


def test_no_number_of_the_paper_stands_beside_toy_data() -> None:
    toys = [row | {"toy": True} for row in RESULTS]
    section = vision_tables.section(data(toys, []))
    assert section is not None
    text = " ".join(re.sub("<[^>]*>", " ", section.body).split())
    assert "toy-gqa 200 exact_match greedy 75.0 ± 2.0 28.0 ± 3.0 +47.0 yes" in text
    assert "toy-vsr 200 acc choice by likelihood 50.0" in text
    assert not re.search(r"64\.\d\d|60\.80|LLaVa|Paper|\bGQA\b", text)
    assert vision_tables.summary(data(toys, [])) == [
        "vision and language: average 61.7; beyond its blind control by 3 standard errors on 1 of 3: toy-gqa"
    ]


def test_the_summary_names_where_it_looks() -> None:
    assert vision_tables.summary(data(RESULTS, [])) == [
        "vision and language: average 61.7; beyond its blind control by 3 standard errors on 1 of 3: GQA"
    ]
    assert vision_tables.summary(data([], [])) == []


def test_a_missing_report_is_said_and_another_pipeline_has_no_section() -> None:
    section = vision_tables.section(data([], []))
    assert section is not None
    assert "Missing: evaluate_vlm has no evaluation report" in section.body
    assert vision_tables.section({"nodes": []}) is None


def test_pictures_have_question_answer_and_truth_and_hostile_text_stays_text() -> None:
    rows = [
        picture(),
        picture(question=HOSTILE, answer=HOSTILE, truth=["red", "blue", "blue"], score=0.0),
        picture(truth=[1, 2, 3, 4], blind_answer=None),
    ]
    section = vision_tables.section(data(RESULTS, rows))
    assert section is not None
    assert section.body.count("<img") == 3
    assert "<script" not in section.body
    assert "truth: <code>blue</code>" in section.body
    assert "[1, 2, 3, 4]" in section.body
    tree = ElementTree.fromstring(vision_tables.grid_svg(rows))  # well-formed, whatever the text
    names = [element.tag.rpartition("}")[2] for element in tree.iter()]
    assert names.count("image") == 3
    assert "script" not in names


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_the_grid_holds_every_picture(count: int) -> None:
    tree = ElementTree.fromstring(vision_tables.grid_svg([picture()] * count))
    assert sum(element.tag.endswith("image") for element in tree.iter()) == count


def test_pictures_are_read_from_the_store(ledger: Ledger, tmp_path: Path) -> None:
    rows = [{k: v for k, v in picture().items() if k != "picture"}, {"file": "pictures/lost.jpg"}]
    files = {"pictures.json": json.dumps(rows).encode(), "pictures/gqa-0.jpg": b"jpeg"}
    entries = []
    for path, content in files.items():
        (tmp_path / "file").write_bytes(content)
        ledger.store.upload(f"objects/{path}", tmp_path / "file")
        entries.append(FileEntry(path=path, size=len(content), sha256=sha256(content), object=f"objects/{path}"))
    artifact = ArtifactManifest(type="EvalReport", digest="a" * 64, facets={}, files=tuple(entries))
    found = read_pictures(ledger, artifact)
    assert len(found) == 1
    assert base64.b64decode(found[0]["picture"].partition(",")[2]) == b"jpeg"
    assert read_pictures(ledger, artifact.model_copy(update={"files": ()})) == []
