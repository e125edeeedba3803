"""Evaluation: the paper's Tables 2 to 8 with this run's models, what is comparable and why not, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flows import family, table_formats, tables
from flows.report.data import Data
from flows.report.markup import (
    MISSING,
    NONE,
    Markup,
    Section,
    badge,
    code,
    details,
    heading,
    items,
    join,
    paragraph,
    table,
)
from flows.table_formats import AVERAGE, IN_DOMAIN, WRONG
from flows.tables import Cell, Table
from stages.core.errors import InputError


def built(data: Data) -> tuple[list[Table], list[str]]:
    """The tables that can be built, and one line for each that cannot."""
    ready: list[Table] = []
    refused: list[str] = []
    models = family.load()
    for name in tables.NAMES:
        try:
            ready.append(tables.build(data, models, name))
        except InputError as error:
            refused.append(str(error))
    return [each for each in ready if each.rows], refused


def section(data: Data) -> Section | None:
    """The tables, and what stands in the way of a comparison."""
    ready, refused = built(data)
    if not ready and not refused:
        return None
    opening = paragraph(
        "The paper's Tables 2 to 8 with this run's models (Table 9). Per cent, ± one standard error; an average is the"
        " plain mean of the columns. A number of the paper stands only in a column where every score of this run is"
        " comparable to it. Hover over a score for its task, metric and report."
    )
    return Section(
        "evaluation",
        "Evaluation: the paper's tables",
        join(
            opening,
            *(paragraph(line, "warning") for line in refused),
            overview(ready),
            *(show(each, data["profile"]) for each in ready),
            heading("Comparable or not", "comparable"),
            comparability(ready),
        ),
    )


def summary(data: Data) -> list[str]:
    """One line: how many scores of each table are there."""
    ready, refused = built(data)
    counts = [
        f"{each.printed.number}: {sum(len(row.cells) for row in each.rows)} of {len(each.rows) * len(each.columns)}"
        for each in ready
    ]
    lines = [f"scores of the paper's tables: {', '.join(counts)}"] if any(not each.empty for each in ready) else []
    return lines + [f"  {line}" for line in refused]


def anchor(each: Table) -> str:
    """Of a table on the page."""
    return f"table-{each.printed.number}"


def overview(ready: Iterable[Table]) -> Markup:
    """One line a table: how much of it is there, and how much of the paper's may stand beside it."""
    rows: list[list[Any]] = []
    for each in ready:
        cells = [cell for row in each.rows for cell in row.cells.values()]
        places = len(each.rows) * len(each.columns)
        beside = [column for column in each.columns if each.compared(column)]
        toys = sum(cell.toy for cell in cells)
        link = Markup('<a class="whole" href="#%s">Table %s</a>') % (anchor(each), each.printed.number)
        models = ", ".join(row.model.title for row in each.rows)
        there, comparable = f"{len(cells)} of {places}", f"{len(beside)} of {len(each.columns)}"
        rows.append([link, each.printed.title, models, there, str(toys) if toys else NONE, comparable])
    head = ("", "Of the paper", "This run's models", "Scores", "of toy data", "Columns beside the paper's")
    return table(head, rows, numbers=(3, 4, 5))


def show(each: Table, profile: str) -> Markup:
    """One table with its notes, and the source of every score."""
    title = heading(table_formats.title(each), anchor(each))
    if each.empty:
        return join(title, _problems(each), _missing(each, profile))
    head = ["Model", *(each.label(column) for column in each.columns), AVERAGE]
    body = table(head, [*_our_rows(each), *_paper_rows(each)], numbers=range(1, len(head)))
    return join(title, body, _notes(each), _missing(each, profile), _sources(each))


def _problems(each: Table) -> Markup | None:
    return Markup('<div class="warning">%s</div>') % items(each.problems) if each.problems else None


def _our_rows(each: Table) -> list[list[Any]]:
    return [
        [
            Markup('<strong class="whole">%s</strong> <small>%s</small>') % (row.model.title, row.model.node),
            *(_score(row.cells.get(column)) for column in each.columns),
            _average(row.average),
        ]
        for row in each.rows
    ]


def _average(average: tables.Average | None) -> Markup:
    if average is None:
        return NONE
    return Markup("%s<small>%s</small>") % (f"{100 * average.value:.1f}", table_formats.share(average))


def _score(cell: Cell | None) -> Markup:
    if cell is None:
        return MISSING
    value, _, error = table_formats.score(cell).partition(" ")
    source = cell.source
    hover = (
        f"{source.task}, {source.metric}, filter {source.filter}, {source.num_fewshot} shots, n = {source.n:,}"
        f" of {source.n_total:,}, {source.harness}, report {source.digest}"
    )
    mark = IN_DOMAIN if cell.in_domain else ""
    return Markup('<span title="%s">%s%s<small> %s</small></span>') % (hover, value, mark, error)


def _paper_rows(each: Table) -> list[list[Any]]:
    wrong = each.wrong_averages()
    return [
        [
            Markup('<span class="paper whole">%s</span> %s') % (row.model, badge("paper", "note")),
            *(f"{scores[column]:.2f}" if column in scores else NONE for column in each.columns),
            f"{row.average:.2f}{WRONG if row in wrong else ''}" if each.whole else NONE,
        ]
        for row, scores in each.paper_rows()
    ]


def _notes(each: Table) -> Markup | None:
    lines = [*table_formats.marks(each), *each.problems]
    return items(lines) if lines else None


def _missing(each: Table, profile: str) -> Markup | None:
    """What makes the scores that are missing."""
    command = each.command(profile)
    if command is None:
        return None
    words = Markup("Missing: no report of %s. They are made by %s")
    return paragraph(words % (", ".join(each.pending), code(command)), "warning")


def _sources(each: Table) -> Markup:
    rows = [
        [
            row.model.title, each.label(column), table_formats.score(cell),
            f"{cell.source.n:,} of {cell.source.n_total:,}",
            str(cell.source.num_fewshot), cell.source.task, f"{cell.source.metric}, {cell.source.filter}",
            cell.source.harness, Markup("%s %s") % (cell.source.node, code(cell.source.digest, 12)),
        ]
        for row in each.rows
        for column, cell in row.cells.items()
    ]  # fmt: skip
    head = ("Model", "Column", "Score", "n", "Shots", "Task", "Metric, filter", "Harness", "Report")
    return details("Where each score comes from", table(head, rows, numbers=(2, 3, 4)))


def comparability(ready: Sequence[Table]) -> Markup:
    """Why columns have no number of the paper beside them."""
    tables_by_reason: dict[str, list[str]] = {}
    for each in ready:
        for reason, columns in each.reasons().items():
            tables_by_reason.setdefault(reason, []).append(f"Table {each.printed.number}: {', '.join(columns)}")
    if all(each.empty for each in ready):
        return paragraph("There is no score yet.")
    if not tables_by_reason:
        return paragraph("Every score that is there is comparable to the paper's.")
    rows = [[reason, "; ".join(places)] for reason, places in tables_by_reason.items()]
    return table(("Not comparable to the paper because", "Columns"), rows)
