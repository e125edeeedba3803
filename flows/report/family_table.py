"""The whole family in one table: every model beside every benchmark, how its answers were decoded named with each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows import family
from flows.report.data import Data
from flows.report.markup import NONE, Markup, Section, join, paragraph, table
from flows.report.scores import score, shown

Column = tuple[str, int, str]
"""Task, shots, decoding: scores of one column were made in one way."""


def decoding(row: Mapping[str, Any]) -> str:
    """How the answers of a score were made: by its report's settings of generation."""
    options: Mapping[str, Any] | None = row.get("generation")
    if options is None:
        return "choice by likelihood" if str(row["metric"]).startswith(("acc", "mc")) else "not recorded"
    if not options.get("do_sample"):
        words = "greedy"
    else:
        top_p = options.get("top_p")
        cut = f", top-p {top_p:g}" if isinstance(top_p, int | float) and top_p < 1 else ""
        words = f"sampled, temperature {options.get('temperature', 1.0):g}{cut}"
    return words + (f", {row['repeats']} answers" if row.get("repeats", 1) > 1 else "")


def cells(data: Data) -> dict[str, dict[Column, Mapping[str, Any]]]:
    """The headline scores of each model of the family, in the family's order; models without any are left out."""
    nodes = {node["name"]: node for node in data["nodes"]}
    models: dict[str, dict[Column, Mapping[str, Any]]] = {}
    for model in family.load():
        for name in model.evaluations:
            for report in nodes[name]["reports"].values() if name in nodes else ():
                for row in report["results"]:
                    if row["headline"]:
                        column = (shown(row), row["num_fewshot"], decoding(row))
                        models.setdefault(model.title, {}).setdefault(column, row)
    return models


def section(data: Data) -> Section | None:
    """The table."""
    models = cells(data)
    if not models:
        return None
    columns = list(dict.fromkeys(column for scores in models.values() for column in scores))
    head = ["Model", *(_head(column) for column in columns)]
    rows = [
        [Markup('<strong class="whole">%s</strong>') % name, *(score(s[c]) if c in s else NONE for c in columns)]
        for name, s in models.items()
    ]
    about = paragraph(
        "Every model of the family beside every benchmark that it was asked, in per cent, ± one standard error. A"
        " column is one way to ask: its shots and how the answers were decoded stand under its name; scores of two"
        " columns do not compare, not even of one benchmark.",
        "note",
    )
    return Section("family", "The family: models and benchmarks", join(about, table(head, rows, range(1, len(head)))))


def _head(column: Column) -> Markup:
    task, shots, how = column
    return Markup("%s <small>%s, %s</small>") % (task, f"{shots} shot{'' if shots == 1 else 's'}", how)
