"""Charts as SVG text, drawn with matplotlib: the same curves in the Prefect UI and in the report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence


def curves_svg(
    series: Mapping[str, Sequence[Mapping[str, float]]], title: str, field: str = "loss", x: str = "step"
) -> str:
    """Training curves as one SVG document. series: `{name: metric rows}`; `val_<field>` rows are drawn as points."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "moxin", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, rows) in enumerate(series.items()):
        colour = f"C{index}"
        line = [(row[x], row[field]) for row in rows if field in row and x in row]
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, label=name)
        held_out = [(row[x], row[f"val_{field}"]) for row in rows if f"val_{field}" in row and x in row]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o", color=colour, markersize=3.5, label=f"{name}, held out")
    axes.set(title=title, xlabel={"tokens": "training tokens"}.get(x, x), ylabel=field)
    axes.grid(alpha=0.25)
    if axes.has_data():
        axes.legend(frameon=False, fontsize=8)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
