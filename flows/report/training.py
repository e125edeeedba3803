"""Pre-training: loss of the phases on one axis of training tokens, and what each phase was and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flows.charts import SMOOTHING, Phase, phases_svg
from flows.report import drawings, plots
from flows.report.data import Data, NodeData, nodes_of
from flows.report.markup import NONE, Markup, Section, join, number, paragraph, percent, short, table
from flows.report.page import inline_svg


def phases(nodes: Sequence[NodeData]) -> list[Phase]:
    """The nodes' curves, each starting where its parent's ended. A parent that is not among them counts as the
    beginning.
    """
    ends: dict[str, float] = {}
    phases_of_nodes: list[Phase] = []
    for node in nodes:
        result = node["result"]
        parents = [ref["node"] for ref in result["inputs"].get("parent", ())]
        start = max((ends.get(parent, 0.0) for parent in parents), default=0.0)
        ends[node["name"]] = start + (
            result["stats"].get("tokens") or max((row.get("tokens", 0) for row in result["metrics"]), default=0)
        )
        phases_of_nodes.append(Phase(node["name"], start, result["metrics"]))
    return phases_of_nodes


def losses(data: Data) -> Section | None:
    """The chart and the table of the phases."""
    names = [node["name"] for node in data["nodes"] if node["stage"] == "pretrain"]
    if not names:
        return None
    nodes = list(nodes_of(data, "pretrain"))
    lost = [name for name in names if name not in {node["name"] for node in nodes}]
    warning = paragraph(f"Missing: {', '.join(lost)}.", "warning") if lost else None
    if not nodes:
        return Section("training", "Pre-training", join(warning))
    caption = (
        "Cross-entropy against training tokens, the phases one after the other. Thin: as logged; thick: their average"
        f" over up to {SMOOTHING} logged values; dots: documents held out from training. Each phase has held-out"
        " documents of its own mixture, so dots of one colour compare with each other, not with those of another"
        " colour."
    )
    stretches = phases(nodes)
    chart = plots.figure(
        inline_svg(drawings.svg(phases_svg, stretches)), caption, "training tokens", plots.phases(stretches)
    )
    rows = [_row(node) for node in nodes]
    head = (
        "Phase",
        "Parameters",
        "Context",
        "Batch, tokens",
        "Steps",
        "Tokens",
        "Epochs",
        "Peak rate",
        "Last loss",
        "Held out",
        "Perplexity",
        "Tokens a second",
        "TFLOP/s",
        "Device",
    )
    body = table(head, rows, numbers=range(1, 13))
    return Section("training", "Pre-training", join(warning, chart, body, *_remarks(nodes)))


def _row(node: NodeData) -> list[Any]:
    stats, config = node["result"]["stats"], node["result"]["config"]
    val, steps, tokens = stats.get("val_loss"), stats.get("steps"), stats.get("tokens")
    rate = config.get("learning_rate")
    return [
        Markup('<a href="#node-{0}">{0}</a>').format(node["name"]),
        number(stats.get("parameters")),
        number(config.get("sequence_length")),
        number(tokens // steps if tokens and steps else None),
        number(steps),
        short(tokens) if tokens else None,
        number(stats.get("epochs"), 2),
        f"{rate:.3g}" if isinstance(rate, int | float) else None,
        number(stats.get("final_loss"), 3),
        number(val, 3) if val is not None else NONE,
        number(math.exp(val), 1) if val is not None and val < 50 else NONE,
        number(stats.get("tokens_per_second")),
        number(stats.get("tflops_per_second"), 3),
        str(stats.get("device", "")),
    ]


def _remarks(nodes: Sequence[NodeData]) -> list[Markup]:
    """Things that the curves do not tell by themselves."""
    remarks: list[Any] = []
    for node in nodes:
        stats, attempt = node["result"]["stats"], node["result"]["attempt"]
        if stats.get("skipped_steps"):
            remarks.append(
                f"{node['name']} skipped {stats['skipped_steps']:,} of {stats['steps']:,} steps"
                f" ({percent(stats['skipped_steps'], stats['steps'])}) on gradients that were not finite."
            )
        if attempt.get("resumed_from") is not None:
            remarks.append(
                f"{node['name']} resumed from its checkpoint at step {attempt['resumed_from']:,}; time and speed are of"
                " the rest."
            )
    return [paragraph(text, "note") for text in remarks]


def summary(data: Data) -> list[str]:
    """One line a phase."""
    lines: list[str] = []
    for node in nodes_of(data, "pretrain"):
        stats = node["result"]["stats"]
        loss, val = number(stats.get("final_loss"), 3), stats.get("val_loss")
        held = f", held out {val:.3f}" if val is not None else ""
        lines.append(f"{node['name']}: {short(stats.get('tokens') or 0)} tokens, last loss {loss}{held}")
    return lines
