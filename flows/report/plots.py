"""Plots that answer to a pointer, drawn by uPlot (bundled) from numbers that stand in the page.

Each stands beside the static picture of the same numbers, which a browser without JavaScript shows, and paper. Nothing
is fetched: a page says so in a policy (`policy`), by which its own two scripts alone may run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.charts import SMOOTHING, Phase
from flows.report.markup import Markup, Section, template

UPLOT = Path(__file__).with_name("uplot")
MARK = '<figure class="plot"'
"""What a section with a plot holds."""
Panel = dict[str, Any]
"""One of the charts of a figure, which share their x axis: `{label, height, lines, smooth}`."""
Line = dict[str, Any]
"""`{name, colour, dots, x, y}`; colour: a number, the same for the same series in every panel."""


def figure(svg: Markup, caption: Markup | str, xlabel: str, panels: Sequence[Panel]) -> Markup:
    """A static picture with its numbers, of which the page's script makes a plot."""
    numbers = json.dumps({"x": xlabel, "panels": [p for p in panels if p["lines"]]}, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":  # what could end the element that it stands in, or a line of a script
        numbers = numbers.replace(mark, f"\\u{ord(mark):04x}")
    return template("plot.html", svg=svg, caption=caption, numbers=Markup(numbers))


def panel(label: str, lines: Sequence[Line], height: int = 240, smooth: int = 0) -> Panel:
    """One chart. height: pixels; smooth: values in the window of the average that is drawn over the lines."""
    return {"label": label, "height": height, "smooth": smooth, "lines": [line for line in lines if line["x"]]}


def line(name: str, xs: Sequence[float], ys: Sequence[float], colour: int = 0, dots: bool = False) -> Line:
    """One series in six digits, by rising x; a value that is not finite is a gap."""
    points = sorted(zip(xs, ys, strict=True), key=lambda point: point[0])
    return {
        "name": name, "colour": colour, "dots": dots,
        "x": [_short(x) for x, _ in points], "y": [_short(y) if math.isfinite(y) else None for _, y in points],
    }  # fmt: skip


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def phases(stretches: Sequence[Phase]) -> list[Panel]:
    """What `charts.phases_svg` draws."""

    def lines(field: str) -> list[Line]:
        return [line(phase.name, *phase.points(field), number) for number, phase in enumerate(stretches)]

    held_out = [
        line(f"{phase.name}, held out", *phase.points("val_loss"), number, dots=True)
        for number, phase in enumerate(stretches)
    ]
    return [
        panel("loss (nats a token)", [*lines("loss"), *held_out], 300, SMOOTHING),
        panel("learning rate", lines("learning_rate"), 150),
        panel("gradient norm", lines("grad_norm"), 150),
        panel("tokens a second", lines("tokens_per_second"), 150),
    ]


def lines(series: Mapping[str, Sequence[Mapping[str, float]]], x: str, y: str, label: str) -> list[Panel]:
    """What `charts.lines_svg` draws."""
    drawn: list[Line] = []
    for number, (name, rows) in enumerate(series.items()):
        points = [(row[x], row[y]) for row in rows if x in row and y in row]
        drawn.append(line(name, [p[0] for p in points], [p[1] for p in points], number))
    return [panel(label, drawn, 240, SMOOTHING)]


@functools.cache
def scripts() -> tuple[str, ...]:
    """uPlot with its licence, then what makes plots of the figures."""
    terms = (UPLOT / "LICENSE").read_text(encoding="utf-8").replace("*/", "")
    library = (UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8")
    ours = (UPLOT.parent / "templates" / "plots.js").read_text(encoding="utf-8")
    return f"/*\n{terms}\n*/\n{library}", ours


@functools.cache
def policy() -> str:
    """The Content-Security-Policy of every page: no host is asked for anything, and no script runs but these."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts())
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; base-uri 'none';"
        " form-action 'none'"
    )


def of_page(sections: Sequence[Section]) -> dict[str, Any]:
    """What `page.html` takes besides title and sections: scripts and style where a section has a plot."""
    if not any(MARK in section.body for section in sections):
        return {"policy": policy(), "plot_style": "", "scripts": ()}
    style = (UPLOT / "uPlot.min.css").read_text(encoding="utf-8")
    return {"policy": policy(), "plot_style": Markup(style), "scripts": tuple(map(Markup, scripts()))}
