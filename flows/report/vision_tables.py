"""The vision-language model: Table 8 beside this run, each score beside its blind control, and a grid of questions with
pictures.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, cast

from flows import paper
from flows.report.data import Data, node_of, pictures_of, report_of
from flows.report.family_table import decoding
from flows.report.markup import NONE, Markup, Section, badge, heading, join, paragraph, table
from flows.report.scores import shown
from flows.tables import not_comparable
from stages.evaluate_vlm.spec import COLUMNS, TABLE

NODE = "evaluate_vlm"
OURS = "Ours"
SIGMAS = 3.0
"""A gain over the blind control of more standard errors than this is called looking (issue 4's bar)."""
CELL, TEXT, LINE, CHARACTERS = 150, 96, 14, 24
"""Of the grid in the UI, pixels: side of a picture, height of the text under it, of a line; and characters in a line.
"""
COLUMNS_OF_GRID = 7
PAPER = 7
"""Which column of the table holds the paper's numbers."""


def section(data: Data) -> Section | None:
    """Scores, blind control, the paper's row, pictures."""
    if node_of(data, NODE) is None:
        return None
    report = report_of(data, NODE)
    if report is None:
        missing = paragraph(
            f"Missing: {NODE} has no evaluation report, so nothing is known of the vision-language model.", "warning"
        )
        return Section("visual", "Vision and language", missing)
    opening = paragraph(
        "Prismatic's suite (paper 7.5). Blind is the same model asked the same questions with another question's"
        f" image: what it knows without looking. The gain's error is that of the paired differences; above {SIGMAS:.0f}"
        " of them the model looks. Per cent."
    )
    return Section("visual", "Vision and language", join(opening, _table(report), *_grid(pictures_of(data, NODE))))


def _table(report: Mapping[str, Any]) -> Markup:
    printed = paper.tables()[TABLE]
    results = [row for row in report["results"] if row["headline"]]
    comparable = {id(row) for row in results if not not_comparable(row)}  # no paper's number beside any other score
    rows: list[list[Any]] = []
    for row in results:
        control = row["control"]
        blind = [_score(control), f"{100 * control['gain']:+.1f}", _verdict(control)] if control else [NONE, NONE, NONE]
        known = printed.row(OURS).scores.get(COLUMNS.get(row["task"], "")) if id(row) in comparable else None
        rows.append(
            [
                _column(row), f"{row['n']:,}", _metric(row), _score(row), *blind,
                f"{known:.2f}" if known is not None else NONE, row["note"] or NONE,
            ]
        )  # fmt: skip
    mean = next((a for a in report["aggregates"]), None)
    average = f"{printed.row(OURS).average:.2f}" if len(comparable) == len(printed.columns) else NONE
    foot = [["Average", "", "", f"{100 * mean['value']:.1f}", "", "", "", average, ""]] if mean else []
    head = [
        "Benchmark", "n", "Metric", "This run", "Blind", "Gain", f"Beyond {SIGMAS:.0f} standard errors",
        "Paper: Moxin-7B-VLM", "Notes",
    ]  # fmt: skip
    if not comparable:
        head, *rows = map(_without_paper, (head, *rows))
        foot = [_without_paper(row) for row in foot]
    return table(head, rows, numbers=(1, 3, 4, 5, 7) if comparable else (1, 3, 4, 5), foot=foot)


def _column(row: Mapping[str, Any]) -> str:
    """The benchmark's name as Table 8 has it, or that of scenes that this run made in its format."""
    return shown(row) if row.get("toy") else COLUMNS.get(row["task"], row["task"])


def _metric(row: Mapping[str, Any]) -> Markup:
    """What was counted, and how the answers came about."""
    return Markup("%s <small>%s</small>") % (row["metric"], decoding(row))


def _score(value: Mapping[str, Any]) -> str:
    error = f" ± {100 * value['stderr']:.1f}" if value["stderr"] is not None else ""
    return f"{100 * value['value']:.1f}{error}"


def _verdict(control: Mapping[str, Any]) -> Markup:
    error = control["gain_stderr"]
    if error is None:
        return NONE
    looks = control["gain"] > SIGMAS * error
    return badge("yes" if looks else "no", "ok" if looks else "note")


def _without_paper(row: list[Any]) -> list[Any]:
    return [*row[:PAPER], *row[PAPER + 1 :]]


def _grid(pictures: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """The questions that the evaluation kept: evenly spaced over each benchmark, so neither the best nor the worst."""
    if not pictures:
        return []
    cells: list[Markup] = []
    for row in pictures:
        verdict = badge("right" if row["score"] >= 0.5 else "wrong", "ok" if row["score"] >= 0.5 else "note")
        cells.append(
            Markup(
                '<figure><img src="%s" alt="" loading="lazy"><figcaption><strong>%s</strong> %s<br>%s<br>answer:'
                " <code>%s</code><br>truth: <code>%s</code><br>blind: <code>%s</code></figcaption></figure>"
            )
            % (
                row["picture"],
                COLUMNS.get(row["benchmark"], row["benchmark"]),
                verdict,
                row["question"],
                row["answer"],
                truth(row),
                row["blind_answer"] or "",
            )
        )
    return [heading("Question, answer, truth"), Markup('<div class="pictures">%s</div>') % Markup("").join(cells)]


def truth(row: Mapping[str, Any]) -> str:
    """A sample's truth for people: the commonest of several answers."""
    value = row["truth"]
    if isinstance(value, list) and value and isinstance(value[0], str):
        answers = cast("list[str]", value)
        return max(dict.fromkeys(answers), key=answers.count)
    return json.dumps(value) if not isinstance(value, str) else value


def summary(data: Data) -> list[str]:
    """One line: what it scores on average, and where it looks."""
    report = report_of(data, NODE)
    if report is None:
        return []
    heads = [row for row in report["results"] if row["headline"]]
    seen = [
        row
        for row in heads
        if (c := row["control"]) and c["gain_stderr"] is not None and c["gain"] > SIGMAS * c["gain_stderr"]
    ]
    mean = sum(row["value"] for row in heads) / len(heads)
    where = ", ".join(_column(row) for row in seen) or "none"
    return [
        f"vision and language: average {100 * mean:.1f}; beyond its blind control by {SIGMAS:.0f} standard errors on"
        f" {len(seen)} of {len(heads)}: {where}"
    ]


def grid_svg(pictures: Sequence[Mapping[str, Any]]) -> str:
    """The grid as one SVG picture, for the Prefect UI. It stands alone: the pictures are in it."""
    height = CELL + TEXT
    rows = -(-len(pictures) // COLUMNS_OF_GRID)
    size = f'width="{COLUMNS_OF_GRID * (CELL + 10)}" height="{rows * height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10"><rect {size}'
        ' fill="white"/>'
    ]
    for number, row in enumerate(pictures):
        x, y = (number % COLUMNS_OF_GRID) * (CELL + 10) + 5, (number // COLUMNS_OF_GRID) * height
        parts.append(
            f'<image x="{x}" y="{y + 4}" width="{CELL - 8}" height="{CELL - 8}" href="{escape(str(row["picture"]))}"/>'
        )
        asked = textwrap.wrap(str(row["question"]), CHARACTERS, max_lines=2, placeholder="..")
        lines = [*asked, f"answer: {row['answer']}", f"truth: {truth(row)}", f"blind: {row['blind_answer'] or ''}"]
        for at, line in enumerate(lines):
            colour = "#1a7f37" if row["score"] >= 0.5 else "#b35900"
            fill = colour if line.startswith("answer") else "#333"
            parts.append(
                f'<text x="{x}" y="{y + CELL + LINE * (at + 0.7):.0f}"'
                f' fill="{fill}">{escape(line[: CHARACTERS + 4])}</text>'
            )
    return "".join([*parts, "</svg>"])
