"""A comparison as one HTML page, in the report's style: opens from anywhere, fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.charts import intervals_svg, lines_svg
from flows.experiments import text
from flows.report import plots
from flows.report.markup import Markup, Section, code, figure, items, join, paragraph, table, template
from flows.report.page import document, inline_svg
from flows.report.scores import shown


def render(data: Mapping[str, Any]) -> str:
    """The page as text. data: of `flows.experiments.compare.compare`."""
    names = [side["name"] for side in data["sides"]]
    parts = [_sides(data), _settings(data), _scores(data, names), _curves(data), _statistics(data, names), _nodes(data)]
    title = f"{' and '.join(names)} compared"
    header = template("comparison.html", title=title, notes=items(data["notes"]) if data["notes"] else "")
    sections = [section for section in parts if section is not None]
    return document(f"Moxin: {title}", header, sections)


def _sides(data: Mapping[str, Any]) -> Section:
    rows = [list(row.values()) for row in text.sides(data)]
    head = ("Name", "Results", "They took", "By", "Why")
    about = paragraph("Shared results are counted where they first stand.", "note")
    return Section("sides", "What is compared", join(table(head, rows), about))


def _settings(data: Mapping[str, Any]) -> Section | None:
    if not data["settings"]:
        return None
    rows = [[row["side"], code(row["change"])] for row in data["settings"]]
    about = paragraph(f"Against {data['sides'][0]['name']}: old value, then new.", "note")
    return Section("settings", "Settings", join(table(("Name", "Setting"), rows), about))


def _scores(data: Mapping[str, Any], names: Sequence[str]) -> Section | None:
    if not data["scores"]:
        return None
    rows = [list(row.values()) for row in text.scores(data, names)]
    head = ("Node", "Task", "Shots", *names, "Difference")
    series = {
        name: [
            (100 * value["value"], 196 * (value["stderr"] or 0.0)) if (value := row["values"][number]) else None
            for row in data["scores"]
        ]
        for number, name in enumerate(names)
    }
    labels = [f"{row['node']} {shown(row)} ({row['shots']})" for row in data["scores"]]
    chart = figure(inline_svg(intervals_svg(labels, series, "per cent")), "Scores with 95 % intervals.")
    about = paragraph(
        "± is one standard error. A difference's takes the two as independent; they answered the same questions, so it"
        " is rather too large.",
        "note",
    )
    return Section("scores", "Scores", join(chart, table(head, rows, numbers=range(2, len(head))), about))


def _curves(data: Mapping[str, Any]) -> Section | None:
    if not data["curves"]:
        return None
    pictures: list[Markup] = []
    for curve in data["curves"]:
        drawing = lines_svg(curve["series"], "step", curve["metric"])
        numbers = plots.lines(curve["series"], "step", curve["metric"], curve["metric"])
        caption = f"{curve['node']}: {curve['metric']} against steps."
        pictures.append(plots.figure(inline_svg(drawing), caption, "step", numbers))
    return Section("curves", "Curves", join(*pictures))


def _statistics(data: Mapping[str, Any], names: Sequence[str]) -> Section | None:
    if not data["statistics"]:
        return None
    rows = [[row["node"], row["statistic"], *map(text.number, row["values"])] for row in data["statistics"]]
    head = ("Node", "Statistic", *names)
    return Section("statistics", "Statistics that differ", table(head, rows, numbers=range(2, len(head))))


def _nodes(data: Mapping[str, Any]) -> Section:
    names = [side["name"] for side in data["sides"]]
    rows = [
        [
            row["node"],
            "the same" if row["same"] else "",
            *(code(key, 12) if key else text.ABSENT for key in row["keys"]),
        ]
        for row in data["nodes"]
    ]
    return Section("nodes", "Results", table(("Node", "", *names), rows))
