"""A comparison for a terminal: tables of what `flows.experiments.compare` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.cost import duration
from flows.report import scores as scores_of_report
from flows.report.ablation import Pair, signed
from flows.report.scores import shown

Rows = list[dict[str, str]]
MOST = 40
"""Rows of statistics in a terminal; the page and --json have all."""
ABSENT = "-"


def tables(data: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Titles and rows; those without rows are left out."""
    names = [side["name"] for side in data["sides"]]
    parts = [
        ("what is compared", sides(data)),
        (f"settings (against {names[0]})", settings(data)),
        ("scores, per cent ± standard error", scores(data, names)),
        ("statistics that differ", statistics(data, names)),
    ]
    return [(title, rows) for title, rows in parts if rows]


def sides(data: Mapping[str, Any]) -> Rows:
    """One row a side."""
    return [
        {
            "name": side["name"],
            "results": f"{side['results']} ({side['own_results']} of its own)",
            "they took": f"{duration(side['seconds'])}, {side['core_hours']:.2f} core-h, ${side['dollars']:,.2f}",
            "by": side["created_by"] or ABSENT,
            "why": side["why"] or ABSENT,
        }
        for side in data["sides"]
    ]


def settings(data: Mapping[str, Any]) -> Rows:
    """What was set otherwise than in the first."""
    return [{"name": row["side"], "setting": row["change"]} for row in data["settings"]]


def scores(data: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """One row a score; the difference to the first with its standard error."""
    return [
        {
            "node": row["node"],
            "task": shown(row),
            "shots": str(row["shots"]),
            **{name: score(value) for name, value in zip(names, row["values"], strict=True)},
            "difference": "  ".join(difference(row["values"][0], value) for value in row["values"][1:]),
        }
        for row in data["scores"]
    ]


def statistics(data: Mapping[str, Any], names: Sequence[str]) -> Rows:
    """One row a number."""
    rows = [
        {
            "node": row["node"],
            "statistic": row["statistic"],
            **{name: number(value) for name, value in zip(names, row["values"], strict=True)},
        }
        for row in data["statistics"]
    ]
    if len(rows) <= MOST:
        return rows
    return [*rows[:MOST], {"node": f"and {len(rows) - MOST} more", "statistic": "", **dict.fromkeys(names, "")}]


def number(value: float | None) -> str:
    """A statistic."""
    return ABSENT if value is None else f"{value:,.6g}"


def score(value: Mapping[str, Any] | None) -> str:
    """A share in per cent, with its standard error."""
    return ABSENT if value is None else scores_of_report.score(value).striptags()


def difference(first: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    """Other minus first. The error takes the two as independent, which answers to the same questions are not: it is too
    large rather than too small.
    """
    pair = Pair(first, other)
    return ABSENT if pair.difference is None else signed(pair.difference, pair.stderr).striptags()
