"""Settings that every fine-tuning stage has. Light: `spec.py` files build on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest
from stages.core.contracts import ConfigError, Facets, Operational, Resources, StageConfig, Work
from stages.engines import rules
from stages.formats import chat_template


class TuningConfig(StageConfig):
    """Optimizer, schedule and machine. Defaults: Tülu 3's (open-instruct docs/tulu3.md before PR #1024; RECIPE 4)."""

    engine: str = Field(default="trl", description="who trains; part of the key, because two engines never give the same bytes")
    devices: Operational[int] = Field(default=1, gt=0, description="GPUs of one machine that the engine trains on; 'trl' takes one")
    learning_rate: float = Field(default=5e-6, gt=0, description="peak")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW (PyTorch's default, which open-instruct keeps)")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW (PyTorch's default, which open-instruct keeps)")
    eps: float = Field(default=1e-8, gt=0, description="AdamW (PyTorch's default, which open-instruct keeps)")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW (Tülu 3: 0)")
    grad_clip: float = Field(default=0.0, ge=0, description="largest global gradient norm; 0: no clipping (open-instruct's default)")
    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="of matrix products; weights are float32 (Tülu 3: bf16)")
    seed: int = Field(default=123, description="data order and sampling (Tülu 3's docs: 123; its 8B script: 8)")
    samples: int = Field(default=8, ge=0, description="held-out prompts whose answers, before and after, are kept with the model")
    micro_batch: Operational[int] = Field(default=1, gt=0, description="rows in one forward pass")
    recompute: Operational[Literal["none", "full"]] = Field(
        default="none", description="activation checkpointing. full: a block keeps its input alone, a third more work; no engine here knows a finer one"
    )
    log_every: Operational[int] = Field(default=10, gt=0, description="optimizer steps between two metric rows")
    checkpoint_every: Operational[int] = Field(default=500, gt=0, description="optimizer steps between two checkpoints")
    eval_batch: Operational[int] = Field(default=64, gt=0, description="rows in a forward pass of a measurement")
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(default="auto", description="auto: a GPU if there is one")


class SupervisedConfig(TuningConfig):
    """What SFT and DPO have besides: epochs over a data set, linear schedule, fixed length."""

    engine: Literal["trl", "open-instruct"] = Field(
        default="trl",
        description="who trains: TRL in this process, or open-instruct as the paper. Part of the key: two engines never give the same bytes",
    )
    epochs: int = Field(default=2, gt=0, description="passes over the data")
    batch_size: int = Field(default=128, gt=0, description="rows in an optimizer step, over all devices")
    max_length: int = Field(default=4096, gt=8, description="tokens of a row; what is longer loses its end, and is counted")
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1, description="share of the steps with a rising rate; then linear to 0")
    max_rows: int | None = Field(default=None, gt=0, description="rows to train on at most, the first ones; unset: all")
    eval_rows: int = Field(default=512, gt=0, description="held-out rows to measure parent and child on, the first ones")

    @model_validator(mode="after")
    def _whole_batches(self) -> SupervisedConfig:
        rules.require_batches(self)
        rules.require(self, rules.OPEN_INSTRUCT if self.engine == "open-instruct" else rules.TRL)
        return self


def child_facets(parent: Facets, template: str | None) -> Facets:
    """Facets of a fine-tuned model: the parent's, with the chat template that it was tuned with (None: the parent's)."""
    digest = parent.get("chat_template_digest") if template is None else chat_template.digest(chat_template.TEMPLATES[template])
    return {**parent, "dtype": "float32", "chat_template_digest": digest}


def check_parent(
    node: str, inputs: Mapping[str, Sequence[tuple[str, Facets]]], *, template: str | None, lengths: Mapping[str, int]
) -> None:
    """Raise ConfigError when a known facet of the parent forbids the stage.

    template: what the stage trains with: the parent must have it, or none yet. None: the parent must have one.
    lengths: `{setting: tokens}` that must fit into the parent's context.
    """
    producer, facets = inputs["parent"][0]
    own, found = facets.get("context_length"), facets.get("chat_template_digest")
    for key, tokens in lengths.items():
        if own is not None and tokens > int(own):
            raise ConfigError(f"node {node}: {key} is {tokens} tokens, but its parent {producer} has context_length {own}: lower {node}.{key}")
    if template is None and found == chat_template.NONE:
        raise ConfigError(f"node {node}: its parent {producer} has no chat template: wire it to a model that went through 'sft'")
    wanted = None if template is None else chat_template.digest(chat_template.TEMPLATES[template])
    if wanted and found not in (None, chat_template.NONE, wanted):
        raise ConfigError(
            f"node {node}: chat_template = '{template}' has digest {wanted[:12]}, but its parent {producer} was tuned with {str(found)[:12]}: "
            "a model keeps one template; choose the parent's"
        )


def tuning_resources(config: TuningConfig) -> Resources:
    """A guess for small models; a profile states what a large one needs."""
    return Resources(cpus=config.threads, memory_gib=4, gpus=0 if config.engine == "trl" else config.devices)


def tuning_work(inputs: Mapping[str, Sequence[ArtifactManifest]], port: str, tokens_per_row: float, passes: float) -> Work:
    """6 FLOPs a parameter and token; `passes` counts a forward and backward pass as one, a forward pass as a third."""
    rows: Any = sum(int(m.meta.get("rows", 0)) for m in inputs.get(port, ()))
    parameters: Any = max([int(m.meta.get("parameters", 0)) for m in inputs.get("parent", ())], default=0)
    return Work(flops=6.0 * parameters * rows * tokens_per_row * passes)
