"""From reports to the paper's tables. Every score here is invented."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flows import paper, tables
from flows.family import Family, FamilyModel, TableRow
from flows.tables import Table
from stages.core.errors import InputError
from tests.support.evaluation_reports import collected, evaluation, score, toy

COLUMNS = paper.tables()["table_2"].columns


def model(node: str, table: str, *evaluations: str, row: str | None = None) -> FamilyModel:
    return FamilyModel(
        node=node, name=f"Moxin-7B-{node}", description="A model.", license="MIT",
        tables={table: TableRow(row=row, nodes=evaluations)},
    )  # fmt: skip


def build(table: str, reports: dict[str, Any], *models: FamilyModel) -> Table:
    family = Family({each.node: each for each in models})
    return tables.build(collected(reports, tuple(family.models)), family, table)


def both(left: list[Any], right: list[Any]) -> Table:
    """Table 2 of two models."""
    reports = {"evaluate_a": evaluation("a", *left), "evaluate_b": evaluation("b", *right)}
    return build("table_2", reports, model("a", "table_2", "evaluate_a"), model("b", "table_2", "evaluate_b"))


def test_columns_stand_in_the_papers_order_and_rows_in_the_familys() -> None:
    scores = [score("table_2", column, 0.5) for column in reversed(COLUMNS)]
    table = both(scores, scores)
    assert table.columns == ("HellaSwag", "WinoGrande", "PIQA", "ARC-E", "ARC-C")
    assert [row.model.node for row in table.rows] == ["a", "b"]
    assert all(tuple(row.cells) == COLUMNS for row in table.rows)


def test_an_average_is_the_plain_mean_and_says_of_how_many_columns_it_is() -> None:
    values = (0.1, 0.2, 0.3, 0.4, 0.6)
    table = both(
        [score("table_2", column, value) for column, value in zip(COLUMNS, values, strict=True)],
        [score("table_2", "PIQA", 0.5), score("table_2", "ARC-C", 0.7, stderr=None)],
    )
    whole, part = (row.average for row in table.rows)
    assert whole is not None
    assert whole.value == pytest.approx(0.32)
    assert whole.stderr == pytest.approx(0.03 / math.sqrt(5))
    assert (whole.columns, whole.of) == (5, 5)
    assert part is not None
    assert (part.value, part.stderr, part.columns, part.of) == (pytest.approx(0.6), None, 2, 5)


def test_two_reports_fill_one_row_of_table_6() -> None:
    reports = {
        "skills_x": evaluation("x", score("table_6", "GSM8K", 0.4, filter="strict-match")),
        "code_x": evaluation("x", score("table_6", "HumanEval", 0.2, metric="pass@10", repeats=20)),
    }
    row = build("table_6", reports, model("x", "table_6", "skills_x", "code_x", row="Moxin-7B-DPO")).rows[0]
    assert {column: cell.value for column, cell in row.cells.items()} == {"GSM8K": 0.4, "HumanEval": 0.2}
    assert [cell.source.digest for cell in row.cells.values()] == ["digest of skills_x", "digest of code_x"]
    source = row.cells["HumanEval"].source
    assert (source.metric, source.task, source.n, source.harness) == (
        "pass@10", "humaneval", 100, "lm-evaluation-harness 0.4.13",
    )  # fmt: skip


def test_a_cell_that_is_filled_twice_is_refused_naming_both() -> None:
    reports = {
        "skills_x": evaluation("x", score("table_6", "HumanEval", 0.4)),
        "code_x": evaluation("x", score("table_6", "HumanEval", 0.2, metric="pass@10")),
    }
    with pytest.raises(InputError) as caught:
        build("table_6", reports, model("x", "table_6", "skills_x", "code_x"))
    assert str(caught.value) == (
        "Table 6, HumanEval of Moxin-7B-x is filled twice: by skills_x (table_6, task humaneval, acc, filter none) and"
        " by code_x (table_6, task humaneval, pass@10, filter none)"
    )


def test_other_metrics_and_other_tables_fill_nothing() -> None:
    scores = [
        score("table_2", "PIQA", 0.5),
        score("table_2", "PIQA", 0.6, metric="acc_norm", headline=False),
        score("table_3", "HellaSwag", 0.7),
    ]
    table = both(scores, scores)
    assert {column: cell.value for column, cell in table.rows[0].cells.items()} == {"PIQA": 0.5}


def test_the_papers_numbers_stand_only_where_every_score_is_comparable() -> None:
    limited = score("table_2", "HellaSwag", 0.5, comparable_to_paper=False, note="60 of 200 documents; another prompt")
    table = both([limited, score("table_2", "PIQA", 0.5)], [score("table_2", c, 0.5) for c in ("HellaSwag", "PIQA")])
    assert [column for column in COLUMNS if table.compared(column)] == ["PIQA"]
    printed = {row.model: scores for row, scores in table.paper_rows()}
    assert printed["Moxin-7B-Original"] == {"PIQA": 78.07}
    assert printed["Mistral-7B"] == {"PIQA": 82.15}
    assert table.reasons() == {"60 of 200 documents": ["HellaSwag"], "another prompt": ["HellaSwag"]}


def test_no_number_of_the_paper_stands_beside_toy_data() -> None:
    table = both([toy("table_2", column, 0.5) for column in COLUMNS], [])
    assert table.paper_rows() == []
    assert table.label("PIQA") == "toy-PIQA"
    pretended = score("table_2", "PIQA", 0.5, toy=True)  # a report that calls toy data comparable
    assert both([pretended], []).paper_rows() == []
    assert both([pretended], []).reasons() == {tables.UNSAID: ["toy-PIQA"]}


def test_other_shots_than_the_papers_are_not_comparable() -> None:
    reports = {"evaluate_a": evaluation("a", score("table_3", "MMLU", 0.5, num_fewshot=2))}
    table = build("table_3", reports, model("a", "table_3", "evaluate_a"))
    assert table.reasons() == {"2 shots, the paper has 5": ["MMLU"]}
    assert table.paper_rows() == []


def test_in_domain_scores_are_marked() -> None:
    table = both([score("table_2", "PIQA", 0.5, in_domain=True)], [score("table_2", "PIQA", 0.5)])
    assert [row.cells["PIQA"].in_domain for row in table.rows] == [True, False]


def test_the_papers_wrong_averages_are_told_where_its_averages_are_shown() -> None:
    columns = paper.tables()["table_6"].columns
    reports = {"skills_x": evaluation("x", *(score("table_6", column, 0.4) for column in columns))}
    table = build("table_6", reports, model("x", "table_6", "skills_x"))
    assert [(row.model, row.printed) for row in table.wrong_averages()] == [("Moxin-7B-II", 54.42)]
    for part in (score("table_6", "GSM8K", 0.4), toy("table_6", "GSM8K", 0.4)):
        reports = {"skills_x": evaluation("x", part)}
        assert build("table_6", reports, model("x", "table_6", "skills_x")).wrong_averages() == []


def test_what_has_not_run_is_named_with_its_command() -> None:
    models = [model("a", "table_2", "evaluate_a"), model("b", "table_2", "evaluate_b")]
    table = build(
        "table_2", {"evaluate_a": evaluation("a", score("table_2", "PIQA", 0.5)), "evaluate_b": None}, *models
    )
    assert table.pending == ("evaluate_b",)
    assert table.command("small") == "moxin run --profile small --select evaluate_b"
    assert not table.empty
    assert build("table_2", {"evaluate_a": None, "evaluate_b": None}, *models).empty
    done = build("table_2", {"evaluate_a": evaluation("a", score("table_2", "PIQA", 0.5))}, models[0])
    assert done.command("small") is None


def test_a_report_that_cannot_fill_the_row_is_a_problem_not_a_number() -> None:
    old = evaluation("a", score("table_2", "PIQA", 0.5)) | {"schema_version": 1}
    other = evaluation("z", score("table_2", "PIQA", 0.5))
    unknown = evaluation("a", score("table_2", "Piqa", 0.5))
    none = evaluation("a", score("table_3", "MMLU", 0.5))
    for report, problem, again in (
        (old, "evaluate_a: its report is of version 1, which names no table: run it again", ("evaluate_a",)),
        (other, "evaluate_a: its report is of z, not of a: run it again", ("evaluate_a",)),
        (unknown, "evaluate_a (table_2, task piqa, acc, filter none) names column Piqa, which Table 2 has not", ()),
        (none, "evaluate_a: its report has no score of Table 2", ()),
    ):
        table = build("table_2", {"evaluate_a": report}, model("a", "table_2", "evaluate_a"))
        assert table.problems == (problem,)
        assert table.pending == again
        assert table.empty
    assert build("table_2", {}, model("a", "table_2")).problems == (
        "a: no node of the pipeline evaluates a for Table 2",
    )


def test_a_pipeline_without_the_familys_models_has_no_tables() -> None:
    family = Family({"a": model("a", "table_2", "evaluate_a")})
    assert list(tables.build_all(collected({}, ()), family)) == []
    assert [each.name for each in tables.build_all(collected({"evaluate_a": None}, ("a",)), family)] == ["table_2"]
