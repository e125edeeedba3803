"""The `pretrain` stage: one phase of next-token training, from fresh weights or from the phase before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Model, OptimizerState, Tokenizer, TokenShards
from stages.core.config import Operational
from stages.core.errors import ConfigError
from stages.core.renamed import Renamed
from stages.core.resources import Processes, Resources, Work
from stages.core.shrinking import Rehearsal, Shrinks, small_batch
from stages.core.stage import Facets, Input, Output, Reading, Stage, output
from stages.lib.modeling.shape import ModelShape
from stages.lib.training import validation
from stages.lib.training.config import TrainingLoopConfig
from stages.lib.training.parallel_sizes import ParallelSizes

MOMENTS_CHOSEN = ("carry_moments", "export_moments")
PAPER_VOCABULARY = 32_000
"""Paper 3.1: what the estimate of work assumes before the tokenizer exists."""


class PretrainConfig(TrainingLoopConfig):
    """Architecture, budget, optimizer, schedule. Defaults: the paper (3.1, 3.4) and upstream's train/pretrain.py."""

    shape: ModelShape = Field(
        default=ModelShape(), description="architecture (paper 3.1, Table 1); a parent must have the same"
    )
    sequence_length: Annotated[int, Shrinks(wiring=128)] = Field(
        default=2000, gt=1, description="tokens in a window (paper 3.4: 2,000, then 4,000)"
    )
    tokens: int = Field(default=10**12, gt=0, description="token budget of this phase; rounded down to whole steps")
    global_batch_size: Annotated[int, Renamed("batch_windows", until="0.3"), Shrinks(wiring=8)] = Field(
        default=512, gt=0, description="windows in an optimizer step (upstream: 64 GPUs x 1 x accumulation 8)"
    )
    learning_rate: float = Field(default=2e-6, gt=0, description="peak (paper 3.4; upstream's scripts: 1e-5, 2e-5)")
    min_lr_ratio: float = Field(
        default=0.1, ge=0, le=1, description="end of the cosine, as a share of the peak (paper 3.4)"
    )
    warmup_steps: Annotated[int, Shrinks(wiring=1, shape=1)] = Field(
        default=2000, ge=0, description="linear warmup, optimizer steps (upstream train/pretrain.py)"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW (paper 3.4)")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW (paper 3.4)")
    eps: float = Field(default=1e-8, gt=0, description="AdamW (paper 3.4)")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW, on matrices only (paper 3.4)")
    grad_clip: float = Field(default=1.0, gt=0, description="largest global gradient norm (upstream train/pretrain.py)")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="on attention weights and on the feed-forward (paper 3.1)"
    )
    document_mask: bool = Field(
        default=True, description="attention stays within a document (upstream trains each document by itself)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp16", description="of matrix products; weights and optimizer are float32 (paper 3.4: FP16 mixed)"
    )
    engine: Literal["torch", "colossalai"] = Field(
        default="torch",
        description=(
            "who trains: PyTorch's FSDP2, or Colossal-AI as the paper (3.4). Part of the key: in half precision they"
            " round differently"
        ),
    )
    carry_moments: bool = Field(
        default=False,
        description=(
            "begin with AdamW's moments of the phase before, which needs its export_moments, instead of zeros. Part of"
            " the key where it is true"
        ),
    )
    export_moments: bool = Field(
        default=False,
        description=(
            "write AdamW's moments (8 bytes a parameter) for a phase that carries them on. Part of the key where it is"
            " true"
        ),
    )
    seed: int = Field(default=0, description="fresh weights, data order, dropout")
    micro_batch_size: Annotated[Operational[int], Renamed("micro_batch", until="0.3"), Shrinks(wiring=2)] = Field(
        default=1, gt=0, description="windows in one forward pass"
    )
    recompute: Operational[Literal["none", "selective", "full"]] = Field(
        default="none",
        description=(
            "activation checkpointing (3.4). full: a block keeps its input alone, a third more work; selective: it"
            " keeps the results of matrix products and attention kernels, and computes what is cheap again"
        ),
    )
    compile: Operational[bool] = Field(
        default=False,
        description=(
            "engine 'torch': torch.compile makes the blocks' kernels (for GPUs; not tried on one, and slower on a CPU)"
        ),
    )
    attention: Operational[Literal["flex", "blocks"]] = Field(
        default="flex",
        description=(
            "a GPU's attention within documents and windows. flex: FlexAttention, which needs a C compiler; blocks:"
            " PyTorch's kernels over blocks of 512 queries, slower, compiles nothing (dropout always takes it)"
        ),
    )
    eval_windows: Annotated[Operational[int], Shrinks(wiring=8, shape=8)] = Field(
        default=64, ge=0, description="held-out windows to measure the loss on"
    )
    eval_every: Annotated[Operational[int], Shrinks(wiring=2, shape=5)] = Field(
        default=500, gt=0, description="steps between two measurements"
    )
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    parallel: Annotated[Operational[ParallelSizes], *validation.FORMER_SIZES] = Field(
        default=ParallelSizes(), description="how both engines spread the training over the processes"
    )
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(
        default="auto", description="auto: a GPU if there is one"
    )

    @property
    def compiles(self) -> bool:
        """Whether a GPU's kernels are made when it runs: by torch.compile, or FlexAttention's, which held-out windows
        see without dropout.
        """
        narrow = self.document_mask or (self.shape.window is not None and self.shape.window < self.sequence_length)
        return self.compile or (self.attention == "flex" and narrow and (self.dropout == 0.0 or self.eval_windows > 0))

    @property
    def steps(self) -> int:
        """Optimizer steps: the token budget in whole batches."""
        return self.tokens // (self.global_batch_size * self.sequence_length)

    def identity(self) -> dict[str, Any]:
        """Without the moments where none are carried: then a phase is what it was before there was a choice."""
        fields = super().identity()
        return {name: value for name, value in fields.items() if value or name not in MOMENTS_CHOSEN}

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.steps < 1:
            raise ValueError(
                f"tokens = {self.tokens} is less than one batch of {self.global_batch_size} x {self.sequence_length}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps}, but the budget is {self.steps} steps in all")
        if self.sequence_length > self.shape.max_positions:
            raise ValueError(
                f"sequence_length = {self.sequence_length} exceeds shape.max_positions = {self.shape.max_positions}"
            )
        validation.require_runnable(self)
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """Whole batches for the processes that there are, a few steps, held-out windows of one batch."""
        sizes: ParallelSizes = values["parallel"]
        parts = max(1, rehearsal.ranks // sizes.model_parallel_size)
        batch = small_batch(values, rehearsal, parts * sizes.pipeline)
        window = batch * values["sequence_length"]
        steps = max(1, min(rehearsal.steps, self.tokens // window))
        return values | {
            "global_batch_size": batch,
            "tokens": steps * window,
            "warmup_steps": min(values["warmup_steps"], steps - 1),
            "eval_windows": min(self.eval_windows, batch),
        }


class Pretrain(Stage[PretrainConfig], env="train", revision=5, checkpoints=True, reproducible="same hardware"):
    """Train the decoder on packed windows: one phase, resumable at any step."""

    tokens: Input[TokenShards]
    tokenizer: Input[Tokenizer]
    parent: Input[Model] | None = None
    parent_moments: Input[OptimizerState] | None = None
    model: Output[Model] = output()
    moments: Output[OptimizerState] = output()

    match = {"tokens.sequence_length": "sequence_length"}
    reads: ClassVar[Mapping[str, Reading]] = {"tokens": "stream", "parent_moments": "stream"}

    @classmethod
    def unread(cls, config: PretrainConfig) -> Collection[str]:
        return () if config.carry_moments else ("parent_moments",)

    @classmethod
    def unwritten(cls, config: PretrainConfig) -> Mapping[str, str]:
        return {} if config.export_moments else {"moments": "export_moments = true"}

    @classmethod
    def check_facets(
        cls, node: str, config: PretrainConfig, inputs: Mapping[str, Sequence[tuple[str, Facets]]]
    ) -> None:
        if config.carry_moments and not inputs.get("parent_moments"):
            raise ConfigError(f"{node}.carry_moments = true, but no phase comes before it: set false")
        super().check_facets(node, config, inputs)

    @classmethod
    def interpreter(cls, config: PretrainConfig) -> str | None:
        return "colossalai" if config.engine == "colossalai" else None

    @classmethod
    def facets(cls, config: PretrainConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        source = inputs["tokenizer"][0]
        of_both = {
            "architecture": "MistralForCausalLM",
            "tokenizer_digest": source.get("tokenizer_digest"),
            "vocab_size": source.get("vocab_size"),
        }
        of_model = {
            "context_length": config.shape.max_positions,
            "dtype": "float32",
            "chat_template_digest": "none",
        }
        return {"model": of_both | of_model} | ({"moments": of_both} if config.export_moments else {})

    @classmethod
    def resources(cls, config: PretrainConfig) -> Resources:
        """For one process; with more, a profile says how many cores and how much memory they have together."""
        threads = config.threads if config.threads > 1 else 0  # each has gradients of its own beside the sum
        # weights, gradients and two moments in float32
        bytes_ = (16 + 4 * threads) * config.shape.parameters(PAPER_VOCABULARY)
        return Resources(cpus=config.threads, memory_gib=2 + 1.3 * bytes_ / 2**30)

    @classmethod
    def processes(cls, config: PretrainConfig) -> Processes:
        return Processes.TORCHRUN

    @classmethod
    def check_resources(cls, node: str, config: PretrainConfig, resources: Resources) -> None:
        validation.require_resources(node, config, resources)

    @classmethod
    def work(cls, config: PretrainConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        known = [m.facets.get("vocab_size") for m in inputs.get("tokenizer", ())]
        vocabulary = int(known[0]) if known and known[0] else PAPER_VOCABULARY
        tokens = config.steps * config.global_batch_size * config.sequence_length
        return Work(flops=tokens * config.shape.flops_per_token(vocabulary, config.sequence_length))

    @classmethod
    def smaller(cls, config: PretrainConfig) -> PretrainConfig | None:
        return config.halved("micro_batch_size") or (
            config.operated(recompute="full") if config.recompute != "full" else None
        )
