"""The model card of a phase: what was trained on what, and what a reader must know. Same inputs, same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.core.context import Context
from stages.lib.training.spikes import card_lines
from stages.pretrain.spec import PretrainConfig


def model_card(
    ctx: Context[PretrainConfig], stats: Mapping[str, Any], index: Mapping[str, Any], benchmarks: Sequence[str]
) -> str:
    """README.md of the model folder. index: `index.json` of the shards; benchmarks: whose training splits were used."""
    config, shape = ctx.config, ctx.config.shape
    parents = ctx.inputs("parent")
    origin = f"continued from `{parents[0].node}`" if parents else "trained from scratch"
    sources = [
        f"| {row['node']} | {row['documents']:,} | {row['tokens']:,} | {row['epochs']} |"
        for row in index.get("sources", [])
    ]
    lines = [
        "---",
        "license: apache-2.0",
        "pipeline_tag: text-generation",
        "library_name: transformers",
        "---",
        f"# {ctx.node}",
        "",
        (
            f"A {stats['parameters']:,}-parameter decoder of the Moxin architecture, {origin} by the Moxin pipeline"
            " (stage `pretrain`)."
        ),
        "",
        *_warning(benchmarks),
        "## Architecture",
        "",
        (
            f"{shape.layers} blocks, width {shape.hidden}, feed-forward {shape.intermediate}, {shape.heads} query and"
            f" {shape.kv_heads} key-value heads of {shape.head_dim}, window {shape.window}, positions up to"
            f" {shape.max_positions}. Loads in transformers' `MistralForCausalLM`."
        ),
        "",
        "## Training",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in config.identity().items() if name != "shape"),
        f"| steps | {stats['steps']:,} |",
        f"| tokens | {stats['tokens']:,} |",
        f"| final loss | {stats['final_loss']:.4f} |",
        *([f"| held-out loss | {stats['val_loss']:.4f} |"] if stats["val_loss"] is not None else []),
        "",
        *card_lines(stats),
        "## Data",
        "",
        "| source | documents | tokens | epochs |",
        "| --- | ---: | ---: | ---: |",
        *sources,
        "",
        "## Limits",
        "",
        "A base model: it continues text, follows no instructions, and repeats what its data says, wrong or not.",
        "",
    ]
    return "\n".join(lines)


def _warning(benchmarks: Sequence[str]) -> list[str]:
    if not benchmarks:
        return []
    return [
        (
            f"> **In-domain for its evaluation.** It was trained on the *training* splits of {', '.join(benchmarks)}"
            " (paper 3.3.3). Its scores on these benchmarks do not compare with those of a model that was not."
        ),
        "",
    ]
