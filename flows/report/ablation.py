"""The paper's ablation, Tables 2 and 3: Original against Enhanced, with what is more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows import paper
from flows.charts import intervals_svg
from flows.report import drawings
from flows.report.data import Data, node_of, report_of
from flows.report.markup import NONE, Markup, Section, badge, heading, items, join, paragraph, table
from flows.report.page import inline_svg
from flows.report.scores import score, shown
from flows.tables import not_comparable

SIGMAS = 2.0
"""A difference within this many standard errors is called noise: about 95 % of what chance does, for a normal variable.
"""


@dataclass(frozen=True)
class Side:
    """One column of a comparison: the node that evaluated, what to call its model, and the paper's name of that
    model.
    """

    node: str
    title: str
    paper: str | None = None


ORIGINAL = Side("evaluate_original", "Original", paper.ORIGINAL)
ENHANCED = Side("evaluate_enhanced", "Enhanced", paper.ENHANCED)


@dataclass(frozen=True)
class Pair:
    """One task (or average) on both sides, as fractions; None where a side has not got it."""

    left: Mapping[str, Any] | None
    right: Mapping[str, Any] | None

    @property
    def any(self) -> Mapping[str, Any]:
        """Whichever side is there."""
        side = self.left or self.right
        assert side is not None
        return side

    @property
    def comparable(self) -> bool:
        """Whether the paper's numbers may stand beside both."""
        return not any(not_comparable(side) for side in (self.left, self.right) if side)

    @property
    def difference(self) -> float | None:
        """Right minus left; None when a side is missing."""
        return self.right["value"] - self.left["value"] if self.left and self.right else None

    @property
    def stderr(self) -> float | None:
        """Standard error of the difference, of two independent estimates; None when one has none."""
        errors = [side["stderr"] for side in (self.left, self.right) if side and side["stderr"] is not None]
        return math.hypot(*errors) if len(errors) == 2 else None

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the difference exceeds `SIGMAS` standard errors; None when that cannot be said."""
        if self.difference is None or self.stderr is None:
            return None
        return abs(self.difference) > SIGMAS * self.stderr


def headline(report: Mapping[str, Any] | None, suite: str) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The scores of a suite that the paper's tables print, by task and number of shots."""
    rows = report["results"] if report else ()
    return {(row["task"], row["num_fewshot"]): row for row in rows if row["suite"] == suite and row["headline"]}


def pairs(
    left: Mapping[str, Any] | None, right: Mapping[str, Any] | None, suite: str
) -> tuple[list[Pair], Pair | None]:
    """Tasks of a suite on both sides, in the report's order, and their averages (None when neither side has one)."""
    lefts, rights = headline(left, suite), headline(right, suite)
    rows = [Pair(lefts.get(key), rights.get(key)) for key in dict.fromkeys([*lefts, *rights])]
    means = [next((a for a in (r["aggregates"] if r else ()) if a["suite"] == suite), None) for r in (left, right)]
    return rows, Pair(*means) if any(means) else None


def suites(*reports: Mapping[str, Any] | None) -> list[str]:
    """Names of the suites of the reports, in their order."""
    return list(dict.fromkeys(row["suite"] for report in reports if report for row in report["results"]))


# --- the section ----------------------------------------------------------------------------------------------------


def ablation(data: Data) -> Section | None:
    """The paper's ablation: what phase 3 changed."""
    if node_of(data, ORIGINAL.node) is None and node_of(data, ENHANCED.node) is None:
        return None
    opening = paragraph(
        "Original is the model after phase 2, Enhanced after phase 3 (capability data); both on the same suite. Scores"
        " in per cent, ± one standard error."
    )
    return Section(
        "ablation",
        "Ablation: Original against Enhanced",
        join(opening, comparison(data, ORIGINAL, ENHANCED)),
    )


def comparison(data: Data, left: Side, right: Side) -> Markup:
    """Two evaluations side by side, suite by suite."""
    reports = [report_of(data, side.node) for side in (left, right)]
    parts: list[Markup | None] = [
        paragraph(f"Missing: {side.node} has no evaluation report, so nothing is known of {side.title}.", "warning")
        for side, report in zip((left, right), reports, strict=True)
        if report is None
    ]
    for suite in suites(*reports):
        parts += _suite(suite, (left, right), reports)
    return join(*parts, _remarks(reports))


def _suite(suite: str, sides: Sequence[Side], reports: Sequence[Any]) -> list[Markup | None]:
    rows, mean = pairs(reports[0], reports[1], suite)
    printed = _paper_table(rows)
    papers = [side for side in sides if side.paper] if printed else []
    head = ["Task", "Shots", "n", sides[0].title, sides[1].title, "Difference", f"Beyond {SIGMAS:.0f} standard errors"]
    head += (
        [f"Paper: {side.title}" for side in papers] + (["Paper: difference"] if len(papers) == 2 else []) + ["Notes"]
    )
    notes = [_notes(pair) for pair in rows]
    common = [note for note in notes[0] if all(note in each for each in notes)] if notes else []
    rows_of_tasks = [
        [*_row(pair, papers, printed), Markup(" ").join(n for n in badges if n not in common) or NONE]
        for pair, badges in zip(rows, notes, strict=True)
    ]
    foot = [[*_mean_row(mean, rows, papers, printed), NONE]] if mean else []
    title = suite.replace("_", " ").capitalize() + (f" (the paper's Table {printed.number})" if printed else "")
    body = table(head, rows_of_tasks, numbers=range(1, len(head) - 1), foot=foot)
    every = paragraph(Markup("Every task: %s") % Markup(" ").join(common), "note") if common else None
    return [heading(title), every, _picture(rows, sides), body]


def _paper_table(rows: Sequence[Pair]) -> paper.Table | None:
    """The paper's table that a suite repeats, if a number of it may stand beside ours."""
    names = [pair.any["table"] for pair in rows if pair.comparable and pair.any["table"] is not None]
    return paper.tables()[names[0]] if names else None


def _picture(rows: Sequence[Pair], sides: Sequence[Side]) -> Markup:
    points = [
        [(100 * s["value"], 100 * SIGMAS * (s["stderr"] or 0.0)) if s else None for s in each]
        for each in zip(*((p.left, p.right) for p in rows), strict=True)
    ]
    svg = drawings.svg(
        intervals_svg,
        [shown(pair.any) for pair in rows],
        dict(zip((side.title for side in sides), points, strict=True)),
        f"score in per cent, ± {SIGMAS:.0f} standard errors",
    )
    return Markup('<div class="wide chart">%s</div>') % inline_svg(svg)


def _row(pair: Pair, papers: Sequence[Side], printed: paper.Table | None) -> list[Any]:
    scores = [
        printed.row(side.paper).scores.get(pair.any["column"] or "") if printed and side.paper else None
        for side in papers
    ]
    counts = list(dict.fromkeys(side["n"] for side in (pair.left, pair.right) if side))
    return [
        Markup("%s <small>%s</small>") % (shown(pair.any), pair.any["metric"]), str(pair.any["num_fewshot"]),
        " / ".join(f"{n:,}" for n in counts),
        *_cells(pair), *_paper_cells(scores if pair.comparable else [None] * len(papers)),
    ]  # fmt: skip


def _mean_row(mean: Pair, rows: Sequence[Pair], papers: Sequence[Side], printed: paper.Table | None) -> list[Any]:
    whole = printed is not None and {pair.any["column"] for pair in rows if pair.comparable} == set(printed.columns)
    averages = [printed.row(side.paper).average if whole and printed and side.paper else None for side in papers]
    return [f"Average of {len(rows)}", "", "", *_cells(mean), *_paper_cells(averages)]


def _cells(pair: Pair) -> list[Any]:
    verdict: Markup | None = None
    if pair.beyond_noise is not None and pair.difference is not None:
        word = ("better" if pair.difference > 0 else "worse") if pair.beyond_noise else "noise"
        verdict = badge({"better": "yes, better", "worse": "yes, worse", "noise": "no"}[word], word)
    return [score(pair.left), score(pair.right), signed(pair.difference, pair.stderr), verdict or NONE]


def signed(difference: float | None, error: float | None) -> Markup:
    """A difference of shares in per cent, with its standard error."""
    if difference is None:
        return NONE
    return Markup("%s<small>%s</small>") % (
        f"{100 * difference:+.1f}",
        f" ±{100 * error:.1f}" if error is not None else "",
    )


def _paper_cells(scores: Sequence[float | None]) -> list[Markup | str]:
    cells: list[Markup | str] = [f"{score:.2f}" if score is not None else NONE for score in scores]
    if len(scores) == 2:
        left, right = scores
        cells.append(f"{right - left:+.2f}" if left is not None and right is not None else NONE)
    return cells


def _notes(pair: Pair) -> list[Markup]:
    sides = [side for side in (pair.left, pair.right) if side]
    badges: list[Markup] = []
    if pair.right and pair.right["in_domain"] and not (pair.left and pair.left["in_domain"]):
        badges.append(badge("in-domain after training", "note"))
    elif any(side["in_domain"] for side in sides):
        badges.append(badge("in-domain", "note"))
    if not pair.comparable:
        badges.append(badge("not comparable to the paper", "note"))
    if any(side["truncated"] for side in sides):
        badges.append(badge(f"{max(side['truncated'] for side in sides):,} requests cut to the context", "note"))
    return badges


def _remarks(reports: Sequence[Mapping[str, Any] | None]) -> Markup | None:
    """What holds for the tables as a whole: harness, in-domain data, reasons of what is not comparable."""
    there = [report for report in reports if report]
    if not there:
        return None
    lines: list[Markup | str] = [
        "The standard error of a difference takes the two scores as independent. Both models answer the same questions,"
        " so it is, if anything, too large: a yes is a yes, a no may be too few questions."
    ]
    if any(row.get("toy") for report in there for row in report["results"]):
        lines.append(
            "Tasks named toy-… are questions that this run made itself, in the benchmark's format: their scores say"
            " that the machinery works, and nothing of the benchmark. No number of the paper stands beside them."
        )
    trained = sorted({name for report in there for name in report["model"]["trained_on"]})
    if trained:
        lines.append(
            f"In-domain: {', '.join(trained)}. The training splits of these benchmarks are in the training data (paper"
            " 3.3.3), so a gain on their test splits is not a gain in general."
        )
    reasons: dict[str, set[str]] = {}
    for report in there:
        for row in report["results"]:
            for reason in not_comparable(row):
                reasons.setdefault(reason, set()).add(shown(row))
    if reasons:
        why = "; ".join(f"{reason} ({', '.join(sorted(tasks))})" for reason, tasks in reasons.items())
        lines.append(f"Not comparable to the paper's numbers: {why}.")
    harness = sorted(
        {f"{r['harness']['name']} {r['harness']['version']}, {r['model']['dtype']}, seed {r['seed']}" for r in there}
    )
    lines.append(f"Scored with {'; '.join(harness)}.")
    return items(lines)


def ablation_rows(data: Data) -> list[dict[str, str]]:
    """The ablation as plain rows, for a table outside the page; empty as long as a side is missing."""
    reports = [report_of(data, side.node) for side in (ORIGINAL, ENHANCED)]
    if None in reports:
        return []
    rows_of_suites: list[dict[str, str]] = []
    for suite in suites(*reports):
        rows, mean = pairs(reports[0], reports[1], suite)
        for pair in [*rows, *([mean] if mean else [])]:
            verdict = {None: "", True: "yes", False: "no"}[pair.beyond_noise]
            cells = [
                Markup(cell).striptags()
                for cell in (score(pair.left), score(pair.right), signed(pair.difference, pair.stderr))
            ]
            task = shown(pair.any) if "task" in pair.any else f"average of {len(rows)}"
            rows_of_suites.append(
                {"suite": suite, "task": task}
                | dict(zip((ORIGINAL.title, ENHANCED.title, "difference"), cells, strict=True))
                | {f"beyond {SIGMAS:.0f} standard errors": verdict}
            )
    return rows_of_suites


def summary(data: Data) -> list[str]:
    """One line a suite: the two averages and what they mean."""
    reports = [report_of(data, side.node) for side in (ORIGINAL, ENHANCED)]
    lines: list[str] = []
    for suite in suites(*reports):
        rows, mean = pairs(reports[0], reports[1], suite)
        if mean is None or mean.difference is None or not mean.left or not mean.right:
            continue
        beyond = sum(bool(row.beyond_noise) for row in rows)
        lines.append(
            f"{suite.replace('_', ' ')}: Original {100 * mean.left['value']:.1f}, Enhanced"
            f" {100 * mean.right['value']:.1f} ({100 * mean.difference:+.1f}); {beyond} of {len(rows)} tasks differ by"
            f" more than {SIGMAS:.0f} standard errors"
        )
    return lines
