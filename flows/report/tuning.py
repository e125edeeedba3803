"""Fine-tuning: what each model did to its parent on held-out data, the curves of training, and some answers before and
after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.charts import lines_svg
from flows.report import drawings, plots
from flows.report.data import Data, NodeData, nodes_of
from flows.report.markup import NONE, Markup, Section, badge, details, join, number, paragraph, table
from flows.report.page import inline_svg
from stages.core.errors import InputError
from stages.lib.formats.paired_eval import Effect, from_stats

STAGES = ("sft", "dpo", "grpo")
CURVES = {
    "sft": (("loss", "loss"),),
    "dpo": (("loss", "loss"), ("reward_accuracy", "pairs the right way round")),
    "grpo": (
        ("accuracy", "responses that are right"),
        ("response_length", "tokens of a response"),
        ("kl", "KL against the start"),
    ),
}
"""Which metrics of a stage are drawn, and what their axes are called."""
ANSWERED = ("accuracy", "format", "pass_at_1")
"""Measures of answers that a model wrote: two of them compare only where they were decoded in one way."""
ABOUT = {"sft": "Supervised fine-tuning", "dpo": "Preference tuning (DPO)", "grpo": "Reinforcement"}


def effects_of(node: NodeData) -> list[Effect]:
    """The effects that a node's manifest holds; none when they cannot be read."""
    try:
        return from_stats(node["result"]["stats"], node["name"])
    except InputError:
        return []


def effects(data: Data) -> Section | None:
    """The table, the curves and the samples."""
    if not any(node["stage"] in STAGES for node in data["nodes"]):
        return None
    nodes = list(nodes_of(data, *STAGES))
    if not nodes:
        return Section(
            "tuning", "Post-training: parent against child", paragraph("Nothing has been fine-tuned yet.", "warning")
        )
    caption = paragraph(
        "Parent and child are measured on the same held-out rows. The interval is the paired difference's, 95 %; trials"
        " at a row are averaged before anything else. Shown: better by more than a one-sided test at 1 % asks for."
        " Sampled answers are worse than greedy ones of the same model as a rule: such rows do not compare.",
        "note",
    )
    rows = [_row(node, one) for node in nodes for one in effects_of(node)]
    head = (
        "Model", "Parent", "Measure", "Decoding", "Better", "Parent's", "Its own", "Difference", "95 %",
        "Rows x trials", "",
    )  # fmt: skip
    body = table(head, rows, numbers=(5, 6, 7, 8, 9))
    gaps = [
        paragraph(f"{node['name']}: not measured: {part} ({reason}).", "warning")
        for node in nodes
        for part, reason in _not_measured(node).items()
    ]
    drawn = [chart for stage in STAGES for chart in _charts(stage, [n for n in nodes if n["stage"] == stage])]
    return Section(
        "tuning", "Post-training: parent against child", join(body, *gaps, caption, *drawn, *map(_samples, nodes))
    )


def _row(node: NodeData, one: Effect) -> list[Any]:
    low, high = one.interval
    parents = [ref["node"] for ref in node["result"]["inputs"].get("parent", ())]
    return [
        Markup('<a href="#node-{0}">{0}</a>').format(node["name"]),
        ", ".join(parents),
        f"{one.metric.replace('_', ' ')} ({one.unit})",
        _decoding(node, one) or NONE,
        one.better,
        f"{one.before:.4f}",
        f"{one.after:.4f}",
        f"{one.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{one.n:,} x {one.trials}",
        badge("shown", "ok") if one.shown else badge("within noise", "note"),
    ]


def _decoding(node: NodeData, one: Effect) -> str:
    """How the answers behind a measure were made; nothing: likelihoods. `grpo` answers as it trains."""
    if one.metric not in ANSWERED:
        return ""
    temperature = node["result"]["config"].get("temperature") if node["stage"] == "grpo" else 0.0
    return (
        "not recorded" if temperature is None else f"sampled, temperature {temperature:g}" if temperature else "greedy"
    )


def _charts(stage: str, nodes: Sequence[NodeData]) -> list[Markup]:
    """One picture for each metric of a stage, all its nodes in it."""
    charts: list[Markup] = []
    for metric, label in CURVES[stage]:
        series = {
            n["name"]: n["result"]["metrics"] for n in nodes if any(metric in row for row in n["result"]["metrics"])
        }
        if series:
            drawing = inline_svg(drawings.svg(lines_svg, series, "step", metric, "optimizer steps", label, 2.4))
            numbers = plots.lines(series, "step", metric, label)
            charts.append(plots.figure(drawing, f"{ABOUT[stage]}: {label}.", "optimizer steps", numbers))
    return charts


def _not_measured(node: dict[str, Any]) -> dict[str, str]:
    reasons: dict[str, str] = node["result"]["stats"].get("not_measured") or {}
    return reasons


def _samples(node: NodeData) -> Markup | None:
    """A few held-out prompts with the answers of parent and child."""
    rows: list[dict[str, Any]] = node["result"]["stats"].get("samples") or []
    if not rows:
        return None
    head = ("Prompt", "In the data", "Parent", "This model")
    cells = [
        [
            _pre(row.get(key, ""))
            for key in ("prompt", "reference" if "reference" in row else "chosen", "before", "after")
        ]
        for row in rows
    ]
    return details(f"{node['name']}: {number(len(rows))} prompts, answered before and after", table(head, cells))


def _pre(text: str) -> Markup:
    """A text as it is, its lines kept."""
    return Markup("<pre>%s</pre>") % text


def summary(data: Data) -> list[str]:
    """One line for each model and measure."""
    return [
        f"{node['name']}: {one.metric.replace('_', ' ')} {one.before:.3f} -> {one.after:.3f} ({one.difference:+.3f} +-"
        f" {1.96 * one.difference_stderr:.3f})"
        for node in nodes_of(data, *STAGES)
        for one in effects_of(node)
    ]
