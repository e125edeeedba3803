"""The card of a vision-language model: what it was made of, how it was trained, where sources disagree. Same inputs,
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.core.context import Context
from stages.lib.training.spikes import card_lines
from stages.vlm.spec import VlmConfig


def model_card(ctx: Context[VlmConfig], stats: Mapping[str, Any], image_size: int) -> str:
    """README.md of the model folder."""
    config, base, towers, rows = ctx.config, ctx.input("base"), ctx.input("towers"), ctx.input("conversations")
    benchmarks = sorted(base.meta.get("benchmarks", ()))
    lines = [
        "---",
        "license: apache-2.0",
        "pipeline_tag: image-text-to-text",
        "library_name: transformers",
        "---",
        f"# {ctx.node}",
        "",
        (
            f"A vision-language model of {stats['parameters']:,} parameters around the decoder of `{base.node}` (paper"
            f" 6): DINOv2 with registers and SigLIP ({stats['tower_parameters']:,} frozen parameters,"
            f" {towers.meta.get('origin', 'unknown')}), {image_size} x {image_size} pixels as {stats['patches']}"
            " patches right after `<s>`, and a three-layer projector."
        ),
        "",
        "## Training",
        "",
        "One stage: projector and decoder together, towers frozen; loss on answers only.",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in config.identity().items()),
        f"| rows | {stats['rows']:,} of `{rows.node}` |",
        f"| steps | {stats['steps']:,} |",
        f"| final loss | {stats['final_loss']:.4f} |",
        *("", *card_lines(stats)),
        "## Where sources disagree",
        "",
        (
            "- The base: the paper says Moxin-7B-Base, the released code points at Moxin-7B-Instruct, its Hugging Face"
            f" configuration at Moxin-7B-LLM. Here it is `{base.node}`, a declared choice."
        ),
        (
            "- The data: the paper lists LLaVA's 558K captions and 665K instructions; the single stage that it"
            f" describes (`no-align`) never reads the captions upstream. Here: {_kinds(rows.meta.get('kinds', {}))}."
        ),
        "",
        "## Use",
        "",
        (
            "Prompt: `<s>`, then one `<image>` id a patch, then `In: {question}\\nOut:`. Images are resized to a square"
            " (bicubic) and normalized for each tower (`preprocessor_config.json`, `pixel_values` in"
            " `modeling_moxin_vlm.py`). `AutoModelForImageTextToText` needs `trust_remote_code=True` for the copied"
            " module; the Moxin pipeline does not."
        ),
        "",
        "## Limits",
        "",
        (
            "It answers briefly, often from habit rather than from the image: compare its scores with the blind control"
            " beside them."
        ),
        *([f"Its base was trained on the training splits of {', '.join(benchmarks)}."] if benchmarks else []),
        "",
    ]
    return "\n".join(lines)


def _kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(kinds.items())) or "not recorded"
