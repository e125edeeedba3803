"""The paper's Tables 2 to 8, made from the evaluation reports of a run. Pure: from what `flows.report.data.collect`
read, the family (infra/family.toml) and the paper's tables (infra/paper_tables.json).

A row is a model of the family; several reports may fill it. A number of the paper stands beside ours only in a column
where every score of ours is comparable to it, as its report computed: never beside toy data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flows import paper
from flows.family import Family, FamilyModel
from stages.core.errors import InputError
from stages.lib.formats.reports import TOY

NAMES = tuple(f"table_{number}" for number in range(2, 9))
TABLED = 2
"""The first version of report.json that says which table and column a score belongs to."""
UNSAID = "its report does not say why"


@dataclass(frozen=True)
class Source:
    """Where a score comes from: the report by its digest, and the task, metric and settings in it."""

    node: str
    digest: str
    suite: str
    task: str
    metric: str
    filter: str
    num_fewshot: int
    n: int
    n_total: int
    harness: str

    @property
    def place(self) -> str:
        """For a message."""
        return f"{self.node} ({self.suite}, task {self.task}, {self.metric}, filter {self.filter})"


@dataclass(frozen=True)
class Cell:
    """One score. value, stderr: 0 to 1; reasons: why it is not comparable to the paper's number, empty if it is."""

    value: float
    stderr: float | None
    toy: bool
    in_domain: bool
    reasons: tuple[str, ...]
    source: Source

    @property
    def comparable(self) -> bool:
        """Whether the paper's number may stand beside it."""
        return not self.reasons


@dataclass(frozen=True)
class Average:
    """The plain mean of a row's columns, as the paper's tables have it. columns: how many there are, of how many."""

    value: float
    stderr: float | None
    columns: int
    of: int


@dataclass(frozen=True)
class Row:
    """A model's scores by column. pending: nodes without a usable report; problems: what is wrong with the others."""

    model: FamilyModel
    cells: Mapping[str, Cell]
    pending: tuple[str, ...]
    problems: tuple[str, ...]
    columns: int

    @property
    def average(self) -> Average | None:
        """Its average; None without any score. The scores' errors are taken as independent."""
        if not self.cells:
            return None
        count = len(self.cells)
        errors = [cell.stderr for cell in self.cells.values()]
        known = [error for error in errors if error is not None]
        stderr = math.hypot(*known) / count if len(known) == count else None
        return Average(sum(cell.value for cell in self.cells.values()) / count, stderr, count, self.columns)


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, with this run's models."""

    name: str
    printed: paper.Table
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """In the paper's order."""
        return self.printed.columns

    @property
    def pending(self) -> tuple[str, ...]:
        """Nodes that have to run before the table is whole."""
        return tuple(dict.fromkeys(node for row in self.rows for node in row.pending))

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with reports that are there."""
        return tuple(dict.fromkeys(problem for row in self.rows for problem in row.problems))

    @property
    def empty(self) -> bool:
        """Whether there is no score at all."""
        return not any(row.cells for row in self.rows)

    def cells(self, column: str) -> list[Cell]:
        """This run's scores of a column."""
        return [row.cells[column] for row in self.rows if column in row.cells]

    def label(self, column: str) -> str:
        """The column's name; one of made questions never carries the benchmark's bare name."""
        return f"{TOY}{column}" if any(cell.toy for cell in self.cells(column)) else column

    def compared(self, column: str) -> bool:
        """Whether the paper's numbers stand in a column: there are scores of ours, and all are comparable."""
        cells = self.cells(column)
        return bool(cells) and all(cell.comparable for cell in cells)

    @property
    def whole(self) -> bool:
        """Whether the paper's averages may stand beside ours: every column is compared."""
        return all(self.compared(column) for column in self.columns)

    def paper_rows(self) -> list[tuple[paper.Row, dict[str, float]]]:
        """The paper's rows with the scores that may be shown, in per cent; none as long as no column is comparable."""
        columns = [column for column in self.columns if self.compared(column)]
        if not columns:
            return []
        shown = ((row, {c: row.scores[c] for c in columns if c in row.scores}) for row in self.printed.rows)
        return [(row, scores) for row, scores in shown if scores]

    def reasons(self) -> dict[str, list[str]]:
        """Why columns have no number of the paper beside them, each reason with its columns."""
        columns_by_reason: dict[str, list[str]] = {}
        for column in self.columns:
            for reason in dict.fromkeys(reason for cell in self.cells(column) for reason in cell.reasons):
                columns_by_reason.setdefault(reason, []).append(self.label(column))
        return columns_by_reason

    def wrong_averages(self) -> list[paper.Row]:
        """The rows whose average the paper printed wrongly; none as long as its averages are not shown."""
        return [row for number, row in paper.wrong_averages() if self.whole and number == self.printed.number]

    def command(self, profile: str) -> str | None:
        """What makes the scores that are missing; None when every node has run."""
        return f"moxin run --profile {profile} --select {','.join(self.pending)}" if self.pending else None


def build(data: Mapping[str, Any], family: Family, name: str) -> Table:
    """One table ('table_2' ..). data: as `flows.report.data.collect` returns it.

    Raises InputError when two scores fill one cell, naming both.
    """
    printed = paper.tables()[name]
    nodes = {node["name"]: node for node in data["nodes"]}
    models = [model for model in family.of_table(name) if model.node in nodes]
    return Table(name, printed, tuple(_row(model, nodes, printed, name) for model in models))


def build_all(data: Mapping[str, Any], family: Family) -> Iterator[Table]:
    """Tables 2 to 8, without those that the pipeline has no model for."""
    return (table for name in NAMES if (table := build(data, family, name)).rows)


def _row(model: FamilyModel, nodes: Mapping[str, Any], printed: paper.Table, name: str) -> Row:
    cells: dict[str, Cell] = {}
    pending: list[str] = []
    problems: list[str] = []
    if not model.tables[name].nodes:
        problems.append(f"{model.title}: no node of the pipeline evaluates {model.node} for Table {printed.number}")
    for node in (nodes[each] for each in model.tables[name].nodes if each in nodes):
        problems += node["problems"]
        if not node["reports"]:
            pending.append(node["name"])
        for port, report in node["reports"].items():
            if problem := _unusable(report, node["name"], model):
                problems.append(problem)
                pending.append(node["name"])
                continue
            digest = node["result"]["outputs"][port]["digest"]
            scores = list(_cells(report, node["name"], digest, name))
            if not scores:
                problems.append(f"{node['name']}: its report has no score of Table {printed.number}")
            for column, cell in scores:
                if column not in printed.columns:
                    problems.append(f"{cell.source.place} names column {column}, which Table {printed.number} has not")
                elif column in cells:
                    raise InputError(
                        f"Table {printed.number}, {column} of {model.name} is filled twice: by"
                        f" {cells[column].source.place} and by {cell.source.place}"
                    )
                else:
                    cells[column] = cell
    ordered = {column: cells[column] for column in printed.columns if column in cells}
    return Row(model, ordered, tuple(dict.fromkeys(pending)), tuple(problems), len(printed.columns))


def _unusable(report: Mapping[str, Any], node: str, model: FamilyModel) -> str:
    """Why a report cannot fill a model's row, or ''."""
    if report["schema_version"] < TABLED:
        return f"{node}: its report is of version {report['schema_version']}, which names no table: run it again"
    if report["model"]["node"] != model.node:
        return f"{node}: its report is of {report['model']['node']}, not of {model.node}: run it again"
    return ""


def _cells(report: Mapping[str, Any], node: str, digest: str, table: str) -> Iterator[tuple[str, Cell]]:
    """Column and score of each result that the table prints."""
    harness = f"{report['harness']['name']} {report['harness']['version']}"
    for score in report["results"]:
        if score["headline"] and score["table"] == table and score["column"] is not None:
            source = Source(
                node=node, digest=digest, harness=harness,
                **{key: score[key] for key in ("suite", "task", "metric", "filter", "num_fewshot", "n", "n_total")},
            )  # fmt: skip
            yield (
                score["column"],
                Cell(score["value"], score["stderr"], score["toy"], score["in_domain"], not_comparable(score), source),
            )


def not_comparable(score: Mapping[str, Any]) -> tuple[str, ...]:
    """Why a score of a report is not comparable to the paper's number: as the report says, and other shots than the
    paper's table has. Empty: it is comparable.
    """
    reasons: list[str] = []
    if score["toy"] or not score["comparable_to_paper"]:
        reasons = [reason for reason in score["note"].split("; ") if reason] or [UNSAID]
    printed = paper.tables().get(score["table"])
    shots = printed.shots.get(score["column"], score["num_fewshot"]) if printed else score["num_fewshot"]
    if shots != score["num_fewshot"] and not any("shot" in reason for reason in reasons):
        reasons.append(f"{score['num_fewshot']} shots, the paper has {shots}")
    return tuple(reasons)
