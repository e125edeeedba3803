"""Settings that every fine-tuning stage has. Light: `spec.py` files build on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest
from stages.core.config import Operational, StageConfig
from stages.core.errors import ConfigError
from stages.core.renamed import Renamed
from stages.core.resources import Measuring, Processes, Resources, Work
from stages.core.shrinking import Rehearsal, Shrinks, small_batch
from stages.core.stage import Facets
from stages.lib.engines import validation
from stages.lib.finetuning import inference_memory
from stages.lib.formats import chat_template
from stages.lib.modeling.shape import ModelShape
from stages.lib.training.spikes import SkipPolicy

PAPER_VOCABULARY = 32_000
"""The paper's (3.1): what the estimate of measuring assumes of a model that is not there yet."""


class TuningConfig(StageConfig):
    """Optimizer, schedule and machine. Defaults: Tülu 3's (open-instruct docs/tulu3.md before PR #1024)."""

    engine: str = Field(
        default="trl", description="who trains; part of the key, because two engines never give the same bytes"
    )
    learning_rate: float = Field(default=5e-6, gt=0, description="peak")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW (PyTorch's default, which open-instruct keeps)")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW (PyTorch's default, which open-instruct keeps)")
    eps: float = Field(default=1e-8, gt=0, description="AdamW (PyTorch's default, which open-instruct keeps)")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW (Tülu 3: 0)")
    grad_clip: float = Field(
        default=0.0, ge=0, description="largest global gradient norm; 0: no clipping (open-instruct's default)"
    )
    attention_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "of attention weights while tuning, whatever the parent was trained with (the base models of Tülu 3 and of"
            " DeepScaleR have 0)"
        ),
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="of matrix products; weights are float32 (Tülu 3: bf16)"
    )
    seed: int = Field(default=123, description="data order and sampling (Tülu 3's docs: 123; its 8B script: 8)")
    samples: Annotated[int, Shrinks(wiring=2, shape=8)] = Field(
        default=8, ge=0, description="held-out prompts whose answers, before and after, are kept with the model"
    )
    micro_batch_size: Annotated[Operational[int], Renamed("micro_batch", until="0.3"), Shrinks(wiring=2)] = Field(
        default=1, gt=0, description="rows in one forward pass"
    )
    recompute: Operational[Literal["none", "full"]] = Field(
        default="none",
        description=(
            "activation checkpointing. full: a block keeps its input alone, a third more work; no engine here knows a"
            " finer one"
        ),
    )
    log_every: Annotated[Operational[int], Shrinks(wiring=1, shape=1)] = Field(
        default=10, gt=0, description="optimizer steps between two metric rows"
    )
    checkpoint_every: Annotated[Operational[int], Shrinks(wiring=1, shape=3)] = Field(
        default=500, gt=0, description="optimizer steps between two checkpoints"
    )
    eval_tokens: Operational[int] = Field(
        default=16_384,
        gt=0,
        description=(
            "tokens in a forward pass of a measurement, padding included; halved by itself when memory runs out"
        ),
    )
    eval_cache_gib: Operational[float] = Field(
        default=4.0,
        gt=0,
        description=(
            "memory for keys and values of the answers that a measurement writes side by side, where no engine writes"
            " them"
        ),
    )
    spikes: SkipPolicy = Field(
        default=SkipPolicy(),
        description=(
            "engine 'trl': losses and gradients that are no numbers, or spikes. Part of the key where it is not the"
            " default"
        ),
    )
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(
        default="auto", description="auto: a GPU if there is one"
    )

    @model_validator(mode="after")
    def _skips(self) -> Self:
        if self.engine != "trl" and self.spikes != SkipPolicy():
            raise ValueError(f"engine '{self.engine}' leaves no step out: unset spikes, or set engine = 'trl'")
        return self

    def identity(self) -> dict[str, Any]:
        """Without the policy for spikes where it is the default."""
        return self.spikes.keyed(super().identity())


PAPER_PROMPTS = (
    "Can you explain the concept of regularization in machine learning?",
    "Can you explain the concept of normalization in machine learning?",
)
"""What the paper asks (Tables 10 and 11)."""


class SupervisedConfig(TuningConfig):
    """What SFT and DPO have besides: epochs over a data set, linear schedule, fixed length."""

    engine: Literal["trl", "open-instruct"] = Field(
        default="trl",
        description=(
            "who trains: TRL in this process, or open-instruct as the paper. Part of the key: two engines never give"
            " the same bytes"
        ),
    )
    epochs: Annotated[int, Shrinks(wiring=1, shape=1)] = Field(default=2, gt=0, description="passes over the data")
    global_batch_size: Annotated[int, Renamed("batch_size", until="0.3"), Shrinks(wiring=8)] = Field(
        default=128, gt=0, description="rows in an optimizer step, over all GPUs"
    )
    max_length: Annotated[int, Shrinks(wiring=512)] = Field(
        default=4096, gt=8, description="tokens of a row; what is longer loses its end, and is counted"
    )
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="share of the steps with a rising rate; then linear to 0"
    )
    max_rows: int | None = Field(default=None, gt=0, description="rows to train on at most, the first ones; unset: all")
    prompts: tuple[str, ...] = Field(
        default=PAPER_PROMPTS,
        description="asked of parent and child besides held-out ones, kept with the model (paper, Tables 10, 11)",
    )
    eval_rows: Annotated[int, Shrinks(wiring=8, shape=8)] = Field(
        default=512, gt=0, description="held-out rows to measure parent and child on, the first ones"
    )

    @model_validator(mode="after")
    def _whole_batches(self) -> SupervisedConfig:
        validation.require_batches(self)
        if self.engine == "open-instruct":
            validation.require(self, validation.OPEN_INSTRUCT)
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """Whole batches for the GPUs that there are, and rows for a few of them."""
        batch = small_batch(values, rehearsal, 1 if self.engine == "trl" else rehearsal.ranks)
        rows = rehearsal.steps * batch
        values |= {"global_batch_size": batch, "max_rows": min(self.max_rows or rows, rows)}
        if rehearsal.level == "shape":
            values["eval_rows"] = batch_of_measurement(self, self.eval_rows, values["eval_rows"], self.max_length)
        return values


def batch_of_measurement(config: TuningConfig, asked: int, least: int, length: int) -> int:
    """How many of the rows or prompts of at most `length` tokens that a profile measures a model on a rehearsal of real
    shapes does: those of one forward pass, of which each takes as long as in the real run.
    """
    return min(asked, max(least, config.eval_tokens // length))


C = TypeVar("C", bound=TuningConfig)


def child_facets(parent: Facets, template: str | None) -> Facets:
    """Facets of a fine-tuned model: the parent's, with the chat template that it was tuned with (None: the
    parent's).
    """
    digest = (
        parent.get("chat_template_digest")
        if template is None
        else chat_template.digest(chat_template.TEMPLATES[template])
    )
    return {**parent, "dtype": "float32", "chat_template_digest": digest}


def check_parent(
    node: str, inputs: Mapping[str, Sequence[tuple[str, Facets]]], *, template: str | None, lengths: Mapping[str, int]
) -> None:
    """Raise ConfigError when a known facet of the parent forbids the stage.

    template: what the stage trains with: the parent must have it, or none yet. None: the parent must have one.
    lengths: `{setting: tokens}` that must fit into the parent's context.
    """
    producer, facets = inputs["parent"][0]
    context_length, parent_digest = facets.get("context_length"), facets.get("chat_template_digest")
    for key, tokens in lengths.items():
        if context_length is not None and tokens > int(context_length):
            raise ConfigError(
                f"node {node}: {key} is {tokens} tokens, but its parent {producer} has context_length {context_length}:"
                f" lower {node}.{key}"
            )
    if template is None and parent_digest == chat_template.NONE:
        raise ConfigError(
            f"node {node}: its parent {producer} has no chat template: wire it to a model that went through 'sft'"
        )
    digest = None if template is None else chat_template.digest(chat_template.TEMPLATES[template])
    if digest and parent_digest not in (None, chat_template.NONE, digest):
        raise ConfigError(
            f"node {node}: chat_template = '{template}' has digest {digest[:12]}, but its parent {producer} was tuned"
            f" with {str(parent_digest)[:12]}: a model keeps one template; choose the parent's"
        )


def smaller_tuning(config: C) -> C | None:
    """Fewer rows in a forward pass, in as many more of them; when that is one row, activation checkpointing."""
    return config.halved("micro_batch_size") or (
        config.operated(recompute="full") if config.recompute == "none" else None
    )


def tuning_processes(config: TuningConfig) -> Processes:
    """TRL trains in the stage's own process; every other engine starts its own, one for each GPU."""
    return Processes.SINGLE if config.engine == "trl" else Processes.ENGINE


def tuning_resources(config: TuningConfig) -> Resources:
    """A guess for small models; a profile states what a large one needs. AReaL writes on one GPU and trains on
    another.
    """
    return Resources(cpus=config.threads, memory_gib=4, gpus={"trl": 0, "areal": 2}.get(config.engine, 1))


def tuning_work(
    inputs: Mapping[str, Sequence[ArtifactManifest]],
    port: str,
    tokens_per_row: float,
    passes: float,
    measured: Measuring,
) -> Work:
    """6 FLOPs a parameter and token; `passes` counts a forward and backward pass as one, a forward pass as a third.
    Nothing where nothing is known.
    """
    rows = sum(int(m.meta.get("rows", 0)) for m in inputs.get(port, ()))
    training = 6.0 * parent_parameters(inputs) * rows * tokens_per_row * passes
    if not training:
        return Work()
    return Work(training + measured.flops, written_flops=measured.written_flops, one_gpu_flops=measured.flops)


def parent_parameters(inputs: Mapping[str, Sequence[ArtifactManifest]]) -> int:
    """Of the model that is tuned; 0: not known yet."""
    return max([int(m.meta.get("parameters", 0)) for m in inputs.get("parent", ())], default=0)


def heldout_count(asked: int, inputs: Mapping[str, Sequence[ArtifactManifest]], port: str) -> int:
    """Held-out rows that a model is measured on: no more than there are, where that is known."""
    rows = sum(int(m.meta.get("rows", 0)) for m in inputs.get(port, ()))
    return min(asked, rows) if rows else asked


def measuring(
    config: TuningConfig,
    inputs: Mapping[str, Sequence[ArtifactManifest]],
    *,
    read: tuple[float, int],
    written: Sequence[tuple[int, int]],
    prompt: int,
) -> Measuring:
    """What measuring takes. read: tokens of one model's held-out rows, and of the longest; written: `(answers, tokens
    of one at most)`;
    prompt: tokens of a prompt at most. A parent whose shape is not known has the paper's."""
    parents = inputs.get("parent", ())
    shape = next((ModelShape(**m.meta["shape"]) for m in parents if "shape" in m.meta), ModelShape())
    vocabulary = next((int(m.facets["vocab_size"]) for m in parents if "vocab_size" in m.facets), PAPER_VOCABULARY)
    parameters = parent_parameters(inputs) or shape.parameters(vocabulary)
    read_tokens, longest = read
    tokens, most = sum(n * length for n, length in written), max([length for n, length in written if n], default=0)
    row = inference_memory.cache_bytes(shape, prompt + most, config.precision)
    fit = inference_memory.rows_at_once(shape, prompt + most, config.precision, config.eval_cache_gib * 2**30)
    at_once = min(
        max([n for n, _ in written], default=0), fit if config.engine == "trl" else 1
    )  # an engine takes what is free, and needs one
    batch = max(config.eval_tokens, longest)
    return Measuring(
        read_tokens=2.0 * read_tokens,
        written_tokens=2.0 * tokens,
        flops=2.0 * parameters * 2.0 * read_tokens,
        written_flops=2.0 * parameters * 2.0 * tokens,
        weights_bytes=float(inference_memory.BYTES[config.precision] * parameters),
        cache_bytes=float(row * at_once) if most else 0.0,
        activation_bytes=float(
            inference_memory.read_bytes(shape, vocabulary, batch, max(1, longest), config.precision)
        ),
    )
