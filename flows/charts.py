"""Charts as SVG text, drawn with matplotlib: the same curves in the Prefect UI and in the report.

`panels_svg` makes a document of its own, on white. The others make pictures to stand inside a page: no background, and
the page's own text colour and font, so that they follow its dark and light style.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws; written out as `currentColor`."""
SMOOTHING = 9
"""Logged values in the window of the smoothed loss, fewer when there are few. Centred: an average of the past alone
lags behind a falling curve.
"""
_STYLE: dict[Any, Any] = {"svg.hashsalt": "moxin", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_INKS = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
_INLINE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(_INKS, INK),
}
_DRAWING = threading.Lock()
"""matplotlib's style is global, and nodes of a run draw in threads of one process."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training. start: training tokens before it; rows: metric rows whose `tokens` count from its own
    start.
    """

    name: str
    start: float
    rows: Sequence[Mapping[str, float]] = field(repr=False)

    def points(self, name: str) -> tuple[list[float], list[float]]:
        """Tokens since the first phase began, and values, of the rows that have the field."""
        chosen = [(self.start + row["tokens"], row[name]) for row in self.rows if name in row and "tokens" in row]
        return [x for x, _ in chosen], [y for _, y in chosen]


def panels_svg(
    rows: Sequence[Mapping[str, float]],
    panels: Sequence[tuple[str, Sequence[str]]],
    title: str,
    former: Sequence[Mapping[str, float]] = (),
    marks: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """One training's metrics against its steps, each panel `(label, metrics)` below the other, as one SVG document.

    `val_` metrics are drawn as points. former: rows of the result before, drawn in grey under them; marks: steps at
    which something is not right, by metric.
    """
    with _drawing({}) as figure:
        canvas = figure((7.2, 1.1 + 1.3 * (1 + max(1, len(panels)))))
        heights = [2.0, *[1.0] * (len(panels) - 1)] if panels else [1.0]
        grid = canvas.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)
        for axes, (label, names) in zip(grid[:, 0], panels, strict=False):
            for number, name in enumerate(names):
                style = "o" if name.startswith("val_") else "-"
                for series, colour, text in ((former, "0.75", f"{name}, before"), (rows, f"C{number}", name)):
                    line = [(row["step"], row[name]) for row in series if name in row and "step" in row]
                    if line:
                        axes.plot(
                            *zip(*line, strict=True), style, color=colour, linewidth=1.2, markersize=3.5, label=text
                        )
                for step in (marks or {}).get(name, ()):
                    axes.axvline(step, color="#c0312b", linewidth=1.0, linestyle="--", alpha=0.7)
            axes.set_ylabel(label)
            axes.grid(alpha=0.25)
            if axes.has_data() and (len(names) > 1 or former):
                axes.legend(frameon=False, fontsize=7)
        grid[0, 0].set_title(title)
        grid[-1, 0].set_xlabel("step")
        return _text(canvas)


def phases_svg(phases: Sequence[Phase]) -> str:
    """Loss of phases that follow one another, on one axis of training tokens, with held-out points; below it the
    learning rate and the norm of the gradient before clipping.
    """
    with _drawing(_INLINE) as figure:
        canvas = figure((9.2, 5.8))
        axes, rate, norm = canvas.subplots(3, sharex=True, height_ratios=(4, 1, 1))
        for index, phase in enumerate(phases):
            colour = f"C{index}"
            xs, ys = phase.points("loss")
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.4)
            axes.plot(
                xs, smoothed(ys, min(SMOOTHING, 1 + len(ys) // 10)), color=colour, linewidth=1.8, label=phase.name
            )
            axes.plot(
                *phase.points("val_loss"), "o", color=colour, markersize=5, markeredgecolor=INK, markeredgewidth=0.8
            )
            rate.plot(*phase.points("learning_rate"), color=colour, linewidth=1.4)
            norm.plot(*phase.points("grad_norm"), color=colour, linewidth=0.9)
            if phase.start:
                for each in (axes, rate, norm):
                    each.axvline(phase.start, color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
        axes.plot([], [], color=INK, linewidth=0.8, alpha=0.5, label="as logged")
        axes.plot([], [], "o", color=INK, markersize=5, label="held out")
        axes.set_ylabel("loss (nats a token)")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, ncols=2)
        rate.set_ylabel("learning\nrate")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        norm.set(ylabel="gradient\nnorm", xlabel="training tokens")
        norm.xaxis.set_major_formatter(_engineering())
        for each in (rate, norm):
            each.set_ylim(bottom=0)
            each.grid(alpha=0.2)
        return _text(canvas)


def lines_svg(
    series: Mapping[str, Sequence[Mapping[str, float]]],
    x: str,
    y: str,
    xlabel: str = "",
    ylabel: str = "",
    height: float = 2.8,
) -> str:
    """Lines. series: `{name: rows}`; rows without both fields are passed over. height: inches, of 9.2 inches of
    width.
    """
    with _drawing(_INLINE) as figure:
        canvas = figure((9.2, height))
        axes = canvas.add_subplot()
        for name, rows in series.items():
            xs, ys = [r[x] for r in rows if x in r and y in r], [r[y] for r in rows if x in r and y in r]
            axes.plot(xs, ys, linewidth=1.5, marker="o" if len(xs) < 30 else "", markersize=3, label=name)
        axes.set(xlabel=xlabel or x, ylabel=ylabel or y)
        axes.grid(alpha=0.2)
        axes.xaxis.set_major_formatter(_engineering())
        if series:
            axes.legend(frameon=False)
        return _text(canvas)


def intervals_svg(rows: Sequence[str], series: Mapping[str, Sequence[tuple[float, float] | None]], xlabel: str) -> str:
    """Values with their intervals, one line of the picture a row. series: `{name: [(value, half of the interval) or
    None]}`.
    """
    with _drawing(_INLINE) as figure:
        canvas = figure((9.2, 0.8 + 0.36 * len(rows)))
        axes = canvas.add_subplot()
        for index, (name, points) in enumerate(series.items()):
            shift = 0.13 * (2 * index - len(series) + 1)
            known = [(row + shift, *point) for row, point in enumerate(points) if point is not None]
            ys, xs, errors = zip(*known, strict=True) if known else ((), (), ())
            axes.errorbar(xs, ys, xerr=errors, fmt="o", markersize=5, linewidth=1.6, color=f"C{index}", label=name)
        axes.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(alpha=0.2, axis="x")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return _text(canvas)


def smoothed(values: Sequence[float], window: int = SMOOTHING) -> list[float]:
    """Moving average over a centred window. At the start it shrinks to the first value, where the curve is steep; at
    the end it reads the past alone, so that the last value is no less smooth than the others.
    """
    out: list[float] = []
    for index in range(len(values)):
        reach = min(window // 2, index)
        near = values[index - reach : index + reach + 1]
        out.append(sum(near) / len(near))
    return out


def _engineering() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="\N{THIN SPACE}")


@contextmanager
def _drawing(style: Mapping[Any, Any]) -> Generator[Any]:
    """A maker of figures in our style. Without pyplot: nothing of a figure outlives its drawing."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    def figure(size: tuple[float, float]) -> Figure:
        return Figure(figsize=size, layout="constrained")

    with _DRAWING, cast("Any", matplotlib).rc_context({**_STYLE, **style}):
        yield figure


def _text(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().replace(INK, "currentColor")
