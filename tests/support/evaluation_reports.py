"""Evaluation reports as `flows.report.data.collect` returns them, with invented scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows import paper
from stages.lib.formats.reports import EvaluatedModel, Harness, Report, Score


def score(table: str, column: str, value: float, **changes: Any) -> Score:
    """A comparable score of a column, with the paper's shots; the task's name is made from the column's."""
    shots = paper.tables()[table].shots.get(column, 0)
    fields: dict[str, Any] = {
        "suite": table, "task": column.lower().replace("-", "_"), "metric": "acc", "headline": True, "value": value,
        "stderr": 0.03, "n": 100, "n_total": 100, "num_fewshot": shots, "data_set": "owner/set", "split": "test",
        "task_version": "1", "truncated": 0, "in_domain": False, "comparable_to_paper": True, "table": table,
        "column": column,
    }  # fmt: skip
    return Score(**(fields | changes))


def toy(table: str, column: str, value: float, **changes: Any) -> Score:
    """A score on questions that the run made itself."""
    note = "the questions were made by this run"
    return score(table, column, value, toy=True, comparable_to_paper=False, note=note, **changes)


def evaluation(model: str, *scores: Score) -> dict[str, Any]:
    """A report on a model's node, as JSON."""
    return Report(
        model=EvaluatedModel(node=model, digest="d" * 64, parameters=1, dtype="float32", trained_on=()),
        harness=Harness(name="lm-evaluation-harness", version="0.4.13"),
        seed=1234,
        results=scores,
        aggregates=(),
    ).model_dump(mode="json")


def collected(reports: Mapping[str, dict[str, Any] | None], models: tuple[str, ...]) -> dict[str, Any]:
    """Collected data of a pipeline with these models, and with evaluations that have these reports (None: none)."""
    nodes = [
        {
            "name": name, "reports": {"report": report} if report else {}, "problems": [], "pictures": [],
            "result": {"outputs": {"report": {"digest": f"digest of {name}"}}} if report else None,
        }
        for name, report in [*dict.fromkeys(models, None).items(), *reports.items()]
    ]  # fmt: skip
    return {"profile": "test", "nodes": nodes}
