"""The tables as text: a golden one in every form. Every score of ours here is invented."""

from __future__ import annotations

import csv
import io
import json

from flows import paper, table_formats, tables
from flows.family import Family, FamilyModel, TableRow
from flows.tables import Table
from tests.support.evaluation_reports import collected, evaluation, score, toy


def table_3(*scores: object) -> Table:
    """Table 3 of one model, by one report."""
    model = FamilyModel(
        node="pretrain_3", name="Moxin-7B-Enhanced", description="A model.", license="MIT",
        tables={"table_3": TableRow(row="Moxin-7B-Enhanced", nodes=("evaluate_a", "evaluate_b"))},
    )  # fmt: skip
    reports = {"evaluate_a": evaluation("pretrain_3", *scores), "evaluate_b": None}  # type: ignore[arg-type]
    return tables.build(collected(reports, ("pretrain_3",)), Family({"pretrain_3": model}), "table_3")


WHOLE = [score("table_3", column, 0.5) for column in paper.tables()["table_3"].columns]
PART = [
    score("table_3", "HellaSwag", 0.5, in_domain=True),
    toy("table_3", "MMLU", 0.25),
    score("table_3", "ARC-C", 0.3, comparable_to_paper=False, note="5 | 25 shots", stderr=None),
]


def test_rows_of_a_table_of_which_one_column_is_comparable() -> None:
    rows = table_formats.plain_rows(table_3(*PART))
    assert rows[0] == {
        "model": "Enhanced",
        "ARC-C": "30.0",
        "HellaSwag": "50.0 ±3.0†",
        "toy-MMLU": "25.0 ±3.0",
        "WinoGrande": "–",
        "Average": "35.0 of 3 of 4",
    }
    assert rows[1] == {
        "model": "paper: Mistral-7B", "ARC-C": "–", "HellaSwag": "83.25", "toy-MMLU": "–", "WinoGrande": "–",
        "Average": "–",
    }  # fmt: skip


def test_the_papers_averages_are_computed_and_the_wrong_one_is_marked() -> None:
    rows = {row["model"]: row for row in table_formats.plain_rows(table_3(*WHOLE))}
    assert rows["paper: Yi-1.5-9B"]["Average"] == "71.45‡"
    assert rows["paper: Moxin-7B-Enhanced"]["Average"] == "70.55"
    assert "‡ the paper prints 71.48 for Yi-1.5-9B; its scores give 71.45" in table_formats.notes(
        table_3(*WHOLE), "tiny"
    )


def test_notes_say_why_and_what_to_run() -> None:
    notes = table_formats.notes(table_3(*PART), "tiny")
    assert notes[0].startswith("toy-…: questions that this run made itself")
    assert notes[1:] == [
        "† in-domain: the model was trained on the benchmark's training split (paper 3.3.3)",
        "not beside the paper's numbers: ARC-C: 5 | 25 shots",
        "not beside the paper's numbers: toy-MMLU: the questions were made by this run",
        "missing scores are made by: moxin run --profile tiny --select evaluate_b",
    ]


def test_markdown_is_a_table_and_text_of_a_report_is_no_markdown() -> None:
    lines = table_formats.markdown([table_3(*PART)], "tiny").splitlines()
    assert lines[:5] == [
        "## Table 3: Base models, few-shot (lm-evaluation-harness)",
        "",
        "| model | ARC-C | HellaSwag | toy-MMLU | WinoGrande | Average |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| Enhanced | 30.0 | 50.0 ±3.0† | 25.0 ±3.0 | – | 35.0 of 3 of 4 |",
    ]
    assert "- not beside the paper's numbers: ARC-C: 5 \\| 25 shots" in lines


def test_csv_has_a_line_for_each_score_with_its_source() -> None:
    rows = list(csv.DictReader(io.StringIO(table_formats.csv_text([table_3(*PART)]))))
    assert [row["column"] for row in rows] == ["ARC-C", "HellaSwag", "toy-MMLU"]
    assert [row["paper"] for row in rows] == ["", "83.08", ""]
    assert rows[1]["report_digest"] == "digest of evaluate_a"
    assert (rows[1]["value"], rows[1]["task"], rows[1]["n"]) == ("0.5", "hellaswag", "100")
    assert (rows[0]["comparable"], rows[0]["reasons"]) == ("False", "5 | 25 shots")


def test_json_holds_everything() -> None:
    value = json.loads(json.dumps(table_formats.json_value([table_3(*PART)], "tiny")))
    row = value["tables"][0]["rows"][0]
    assert row["scores"]["HellaSwag"]["source"]["digest"] == "digest of evaluate_a"
    assert row["scores"]["MMLU"]["comparable"] is False
    assert row["average"]["columns"] == 3
    assert row["missing"] == ["evaluate_b"]
    assert all(set(printed["scores"]) == {"HellaSwag"} for printed in value["tables"][0]["paper_rows"])
