"""Scores of an evaluation report for people: names, numbers, plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.report.markup import MISSING, Markup
from flows.tables import not_comparable
from stages.lib.formats.reports import TOY


def shown(row: Mapping[str, Any]) -> str:
    """The name of a task for people: one of made questions never carries the benchmark's bare name."""
    return f"{TOY}{row['task']}" if row.get("toy") else str(row["task"])


def score(row: Mapping[str, Any] | None) -> Markup:
    """A score in per cent with its standard error, "missing" for None."""
    if row is None:
        return MISSING
    error = f" ±{100 * row['stderr']:.1f}" if row["stderr"] is not None else ""
    return Markup("%s<small>%s</small>") % (f"{100 * row['value']:.1f}", error)


def rows_of(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The scores of one evaluation as plain rows, for a table outside the page."""
    rows: list[dict[str, str]] = []
    for row in report["results"]:
        if row["headline"]:
            error = f"{100 * row['stderr']:.1f}" if row["stderr"] is not None else ""
            notes = [
                *(["in-domain"] if row["in_domain"] else []),
                *(["not comparable to the paper"] if not_comparable(row) else []),
            ]
            rows.append({
                "suite": row["suite"], "task": shown(row), "shots": str(row["num_fewshot"]), "metric": row["metric"],
                "score, %": f"{100 * row['value']:.1f}",
                "± standard error": error, "n": f"{row['n']:,}", "notes": ", ".join(notes),
            })  # fmt: skip
    return rows
