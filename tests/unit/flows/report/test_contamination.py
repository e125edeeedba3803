"""The section on contamination: what is measured, what is not, and hostile names."""

from __future__ import annotations

from typing import Any

from flows import contamination as measuring
from flows.report import contamination
from tests.support.overlaps import Results, pipeline
from tests.support.report_pages import HOSTILE, Page


def data(results: Results, state: str = "ok") -> dict[str, Any]:
    ledger: Any = results
    node = {"name": "contamination", "state": state, "why": "its input documents came from another result"}
    return {
        "profile": "tiny",
        "nodes": [node],
        "contamination": measuring.measure(ledger, pipeline(), results.results),
    }


def page(values: dict[str, Any]) -> Page:
    section = contamination.section(values)
    assert section is not None
    return Page(str(section.body))


def measured() -> Results:
    results = Results()
    results.overlap()
    results.evaluation("evaluate_original", "pretrain_2", [1.0, 0.0, 1.0, 0.0])
    return results


def test_nothing_measured_says_how() -> None:
    values = data(Results())
    assert "moxin run --profile tiny --select contamination" in page(values).text
    assert contamination.summary(values) == [
        "contamination: not measured (moxin run --profile tiny --select contamination)"
    ]
    assert contamination.section({"profile": "tiny", "nodes": [], "contamination": None}) is None
    assert contamination.summary({"profile": "tiny", "nodes": [], "contamination": None}) == []


def test_dirty_items_and_scores_stand_in_the_table() -> None:
    text = page(data(measured())).text
    for part in ("toy-piqa", "1 (25.0 %)", "100.0", "pretrain_2, by evaluate_original", "Learned from dedup_text"):
        assert part in text
    assert "Not looked through, though it learned from it: dedup_code.documents, quality_web.kept" in text
    assert "some/questions default/test (toy)" in text
    assert contamination.summary(data(measured())) == [
        "contamination: 2 of 4 evaluation items overlap with training data (1 too short)"
    ]


def test_an_overlap_of_other_data_is_said() -> None:
    assert "of other data than this run's newest" in page(data(measured(), "stale")).text
    assert "of other data than this run's newest" not in page(data(measured(), "drift")).text


def test_names_are_text_whatever_they_hold() -> None:
    values = data(measured())
    values["contamination"]["evaluations"][0]["tasks"][0]["task"] = HOSTILE
    values["contamination"]["overlap"]["splits"][0]["data_set"] = HOSTILE
    values["contamination"]["problems"] = [HOSTILE]
    found = page(values)
    assert not {"script", "img"} & found.tags()
    assert found.text.count("alert(1)") == 3
