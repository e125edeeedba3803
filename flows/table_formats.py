"""The paper's tables outside the report's page: rows of text, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from flows.tables import Average, Cell, Table

AVERAGE = "Average"
ABSENT = "–"
IN_DOMAIN = "†"
"""Marks a score on a benchmark whose training split the model learned from."""
WRONG = "‡"
"""Marks an average of the paper's that is not that of its scores."""
SCHEMA = 1
"""Version of what `moxin tables --json` prints."""
CSV_FIELDS: Sequence[str] = (
    "table", "column", "model", "node", "value", "stderr", "n", "n_total", "num_fewshot", "suite", "task", "metric",
    "filter", "harness", "report_node", "report_digest", "toy", "in_domain", "comparable", "reasons", "paper",
)  # fmt: skip


def score(cell: Cell | Average) -> str:
    """A score in per cent with its standard error."""
    error = f" ±{100 * cell.stderr:.1f}" if cell.stderr is not None else ""
    return f"{100 * cell.value:.1f}{error}"


def share(average: Average) -> str:
    """How many columns an average is of, where some are missing."""
    return "" if average.columns == average.of else f" of {average.columns} of {average.of}"


def plain_rows(table: Table) -> list[dict[str, str]]:
    """This run's rows, then the paper's, each with the table's columns and the average."""
    labels = {column: table.label(column) for column in table.columns}
    rows: list[dict[str, str]] = []
    for row in table.rows:
        cells = {
            label: score(cell) + (IN_DOMAIN if cell.in_domain else "") if (cell := row.cells.get(column)) else ABSENT
            for column, label in labels.items()
        }
        average = f"{score(row.average)}{share(row.average)}" if row.average else ABSENT
        rows.append({"model": row.model.title, **cells, AVERAGE: average})
    wrong = table.wrong_averages()
    for printed, scores in table.paper_rows():
        cells = {label: f"{scores[c]:.2f}" if c in scores else ABSENT for c, label in labels.items()}
        mark = WRONG if printed in wrong else ""
        average = f"{printed.average:.2f}{mark}" if table.whole else ABSENT
        rows.append({"model": f"paper: {printed.model}", **cells, AVERAGE: average})
    return rows


def marks(table: Table) -> list[str]:
    """What the signs in a table mean, and the averages that the paper printed wrongly."""
    lines: list[str] = []
    if any(cell.toy for column in table.columns for cell in table.cells(column)):
        lines.append(
            "toy-…: questions that this run made itself, in the benchmark's format: they say that the machinery works,"
            " and nothing of the benchmark"
        )
    if any(cell.in_domain for column in table.columns for cell in table.cells(column)):
        lines.append(f"{IN_DOMAIN} in-domain: the model was trained on the benchmark's training split (paper 3.3.3)")
    for row in table.wrong_averages():
        lines.append(f"{WRONG} the paper prints {row.printed:.2f} for {row.model}; its scores give {row.average:.2f}")
    return lines


def notes(table: Table, profile: str) -> list[str]:
    """What a reader of the table has to know: signs, reasons, what is wrong, what is missing and what makes it."""
    lines = marks(table)
    for reason, columns in table.reasons().items():
        lines.append(f"not beside the paper's numbers: {', '.join(columns)}: {reason}")
    lines += table.problems
    if command := table.command(profile):
        lines.append(f"missing scores are made by: {command}")
    return lines


def title(table: Table) -> str:
    """`Table 2: Base models, zero-shot`."""
    return f"Table {table.printed.number}: {table.printed.title}"


def markdown(tables: Iterable[Table], profile: str) -> str:
    """GitHub's Markdown."""
    lines: list[str] = []
    for table in tables:
        rows = plain_rows(table)
        head = ["model", *map(table.label, table.columns), AVERAGE]
        lines += [f"## {title(table)}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
        lines += [_line(list(row.values())) for row in rows]
        lines += ["", *(f"- {_escaped(note)}" for note in notes(table, profile)), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Text of a report is no Markdown."""
    for sign in "\\|<>*_`[":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")


def csv_text(tables: Iterable[Table]) -> str:
    """One line a score: value and standard error from 0 to 1, the paper's number in per cent where it may be shown."""
    stream = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(stream, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row in table.rows:
            for column, cell in row.cells.items():
                source = asdict(cell.source)
                writer.writerow({
                    "table": table.printed.number, "column": table.label(column), "model": row.model.title,
                    "node": row.model.node, "value": cell.value, "stderr": cell.stderr,
                    "report_node": source.pop("node"), "report_digest": source.pop("digest"), **source, "toy": cell.toy,
                    "in_domain": cell.in_domain, "comparable": cell.comparable, "reasons": "; ".join(cell.reasons),
                    "paper": _paper_number(table, column, row.model.rows.get(table.name)),
                })  # fmt: skip
    return stream.getvalue()


def _paper_number(table: Table, column: str, model: str | None) -> float | None:
    """The paper's score of this very model, where it may be shown."""
    return next((scores.get(column) for row, scores in table.paper_rows() if row.model == model), None)


def json_value(tables: Iterable[Table], profile: str) -> dict[str, Any]:
    """Everything, with the source of every score."""
    return {"schema_version": SCHEMA, "profile": profile, "tables": [_table(table, profile) for table in tables]}


def _table(table: Table, profile: str) -> dict[str, Any]:
    rows = [
        {
            "node": row.model.node,
            "model": row.model.name,
            "scores": {column: asdict(cell) | {"comparable": cell.comparable} for column, cell in row.cells.items()},
            "average": asdict(row.average) if row.average else None,
            "paper_row": row.model.rows.get(table.name),
            "missing": list(row.pending),
        }
        for row in table.rows
    ]
    printed = [
        {"model": row.model, "scores": scores, "average_printed": row.printed, "average": round(row.average, 3)}
        for row, scores in table.paper_rows()
    ]
    return {
        "table": table.printed.number,
        "title": table.printed.title,
        "columns": list(table.columns),
        "rows": rows,
        "paper_rows": printed,
        "notes": notes(table, profile),
        "command": table.command(profile),
    }
