"""The card of a fine-tuned model: parent, data, settings, effect, limits. Same inputs, same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.context import Context
from stages.lib.finetuning.heldout_evaluation import gaps_of
from stages.lib.formats.paired_eval import Effect
from stages.lib.training.spikes import card_lines

LIMITS = {
    "sft": "It answers in the manner of its data, and repeats what that says, wrong or not.",
    "dpo": (
        "It prefers what its pairs prefer; where those were made by a program or another model, it takes over their"
        " errors."
    ),
    "grpo": "Its reward looks at the final answer alone: the reasoning before it may be wrong, or no reason for it.",
}


def tuning_card(
    ctx: Context[Any], stage: str, stats: Mapping[str, Any], effects: Sequence[Effect], ports: Sequence[str]
) -> str:
    """README.md of the model folder. ports: the inputs that hold the training data."""
    parent = ctx.input("parent")
    benchmarks = sorted(parent.meta.get("benchmarks", ()))
    lines = [
        "---",
        "license: apache-2.0",
        "pipeline_tag: text-generation",
        "library_name: transformers",
        "---",
        f"# {ctx.node}",
        "",
        (
            f"Made from `{parent.node}` ({parent.manifest.digest[:12]}) by the Moxin pipeline (stage `{stage}`). Loads"
            " in transformers' `MistralForCausalLM`; the folder holds tokenizer and chat template."
        ),
        "",
        "## Effect",
        "",
        *effect_table(effects),
        "",
        *(line for name, reason in gaps_of(stats).items() for line in (f"> Not measured: {name} ({reason}).", "")),
        *(
            [
                (
                    f"> Its base was trained on the *training* splits of {', '.join(benchmarks)}: in-domain for them"
                    " (paper 3.3.3)."
                ),
                "",
            ]
            if benchmarks
            else []
        ),
        "## Data",
        "",
        *data_lines(ctx, ports),
        "",
        "## Training",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in ctx.config.identity().items()),
        *(f"| {name} | {value} |" for name, value in stats.items() if not isinstance(value, dict)),
        "",
        *card_lines(stats),
        "## Limits",
        "",
        LIMITS[stage],
        "",
    ]
    return "\n".join(lines)


def effect_table(effects: Sequence[Effect]) -> list[str]:
    """Parent against child, with the 95 % interval of the paired difference."""
    lines = [
        "| on held-out rows | parent | this model | difference, 95 % | rows x trials |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in effects:
        low, high = one.interval
        lines.append(
            f"| {one.metric} ({one.unit}, {one.better} is better) | {one.before:.4f} | {one.after:.4f} | "
            f"{one.difference:+.4f} ({low:+.4f} to {high:+.4f}) | {one.n} x {one.trials} |"
        )
    return lines


def data_lines(ctx: Context[Any], ports: Sequence[str]) -> list[str]:
    """Which artifacts it was trained on, and what their sources are."""
    lines = []
    for port in ports:
        artifact = ctx.input(port)
        lines.append(f"- `{artifact.node}` ({artifact.manifest.digest[:12]})")
        sources = artifact.meta.get("sources", {})
        if isinstance(sources, Mapping):
            lines += [f"  - {name}: {value}" for name, value in sources.items()]
    return lines


SHOWN, SHOWN_CHARACTERS = 3, 1200
"""Samples that travel with the manifest, for the report, and how much of each text; all of them are in samples.jsonl.
"""


def write_samples(folder: Path, rows: Sequence[Mapping[str, Any]], further: int = 0) -> list[dict[str, str]]:
    """Write samples.jsonl: `{prompt: turns, before, after, ...}` of held-out prompts, and of `further` ones at the
    end. Returns the first few and the further ones as text.
    """
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    asked = len(rows) - further
    shown = [*rows[: min(SHOWN, asked)], *rows[asked:]]
    return [{key: _text(value)[:SHOWN_CHARACTERS] for key, value in row.items()} for row in shown]


def _text(value: Any) -> str:
    """Turns, or a text, as text."""
    return (
        value.strip() if isinstance(value, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    )
