"""The page's section of the paper's tables. Every score of ours here is invented."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flows import paper
from flows.report import paper_tables
from stages.pipeline import PIPELINE
from tests.support.evaluation_reports import collected, evaluation, score, toy
from tests.support.report_pages import HOSTILE, Page

ORIGINAL, ENHANCED = "evaluate_original", "evaluate_enhanced"
COLUMNS = {name: paper.tables()[name].columns for name in ("table_2", "table_3")}


def data(**reports: Any) -> dict[str, Any]:
    """The paper's pipeline, with these reports alone."""
    names = tuple(node.name for node in PIPELINE if node.name not in reports)
    return collected(reports, names)


def text(collected_data: dict[str, Any]) -> str:
    """The section's words."""
    section = paper_tables.section(collected_data)
    assert section is not None
    return " ".join(Page(str(section.body).replace("<", " <")).text.split())


def scores(kind: Any) -> list[Any]:
    return [kind(name, column, 0.5) for name, columns in COLUMNS.items() for column in columns]


def test_comparable_scores_stand_beside_the_paper_and_its_wrong_average_is_footnoted() -> None:
    shown = text(data(evaluate_original=evaluation("pretrain_2", *scores(score))))
    assert "Original pretrain_2 50.0 ±3.0 50.0 ±3.0 50.0 ±3.0 50.0 ±3.0 50.0 ±3.0 50.0" in shown
    assert "Moxin-7B-Original paper 72.06 66.31 78.07 71.47 48.15 67.21" in shown
    assert "Yi-1.5-9B paper 58.36 80.36 69.54 77.53 71.45‡" in shown
    assert "the paper prints 71.48 for Yi-1.5-9B; its scores give 71.45" in shown
    assert "Every score that is there is comparable to the paper's." in shown


def test_toy_data_is_named_so_and_no_number_of_the_paper_is_there() -> None:
    results = data(**{node: evaluation(model, *scores(toy)) for node, model in
                   ((ORIGINAL, "pretrain_2"), (ENHANCED, "pretrain_3"))})  # fmt: skip
    shown = text(results)
    assert "Model toy-HellaSwag toy-WinoGrande toy-PIQA toy-ARC-E toy-ARC-C Average" in shown
    numbers = {f"{value:.2f}" for name in COLUMNS for row in paper.tables()[name].rows for value in row.scores.values()}
    assert not numbers & set(re.findall(r"\d\d\.\d\d", shown))
    assert "the questions were made by this run Table 2: toy-HellaSwag" in shown
    assert paper_tables.summary(results)[0].startswith("scores of the paper's tables: 2: 10 of 10, 3: 8 of 8,")


def test_what_has_not_run_says_which_command_makes_it() -> None:
    results = data(evaluate_original=evaluation("pretrain_2", *scores(score)))
    results["nodes"] += collected({ENHANCED: None}, ())["nodes"]
    results["nodes"] = list({node["name"]: node for node in results["nodes"]}.values())
    assert "They are made by moxin run --profile test --select evaluate_enhanced" in text(results)


def test_an_empty_ledger_has_no_score_and_another_pipeline_no_section() -> None:
    empty = data()
    assert "There is no score yet." in text(empty)
    assert paper_tables.summary(empty) == []
    assert paper_tables.section(collected({}, ("probe",))) is None


def test_a_cell_filled_twice_is_told_and_the_other_tables_stand() -> None:
    twice = [score("table_2", "PIQA", 0.5), score("table_2", "PIQA", 0.6, metric="acc_norm")]
    results = data(evaluate_original=evaluation("pretrain_2", *twice, *scores(score)[5:]))
    assert "Table 2, PIQA of Moxin-7B-Original is filled twice: by evaluate_original" in text(results)
    assert "Table 3: Base models, few-shot" in text(results)


@pytest.mark.parametrize("field", ["task", "metric", "filter", "suite"])
def test_hostile_text_stays_text(field: str) -> None:
    hostile = score("table_2", "PIQA", 0.5, **{field: HOSTILE}, comparable_to_paper=False, note=HOSTILE)
    section = paper_tables.section(data(evaluate_original=evaluation("pretrain_2", hostile)))
    assert section is not None
    page = Page(str(section.body))
    assert not page.tags() & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_every_table_has_an_anchor() -> None:
    section = paper_tables.section(data())
    assert section is not None
    page = Page(str(section.body))
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = {attributes["href"].removeprefix("#") for tag, attributes in page.elements if tag == "a"}
    assert {f"table-{number}" for number in range(2, 9)} <= anchors
    assert links <= anchors
