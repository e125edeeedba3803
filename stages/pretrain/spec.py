"""The `pretrain` stage: one phase of next-token training, from fresh weights or from the phase before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.artifacts import ArtifactManifest, Model, Tokenizer, TokenShards
from stages.core.contracts import Facets, Input, Operational, Output, Resources, Stage, StageConfig, Work, output
from stages.modeling.shape import ModelShape
from stages.pretrain import rules

PAPER_VOCABULARY = 32_000
"""RECIPE 1: what the estimate of work assumes before the tokenizer exists."""


class ColossalSettings(BaseModel):
    """How engine 'colossalai' spreads the model: a plugin of its Booster, and what that can do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plugin: Literal["hybrid", "low_level_zero", "gemini"] = Field(
        default="low_level_zero",
        description="hybrid: tensor and pipeline parallel, with data parallel or ZeRO around; low_level_zero: ZeRO alone (upstream's README: "
        "zero2_cpu); gemini: weights in chunks that come and go (upstream's default; needs GPUs)",
    )
    zero_stage: Literal[0, 1, 2] = Field(
        default=2, description="0: every process keeps all; 1: moments and float32 weights are cut; 2: gradients too (upstream: zero2_cpu)"
    )
    pipeline: int = Field(default=1, gt=0, description="hybrid: groups of processes that have a part of the blocks each (1F1B over micro_batch)")
    cpu_offload: bool = Field(default=False, description="ZeRO's float32 weights and moments lie in CPU memory (upstream: zero2_cpu; needs GPUs)")


class PretrainConfig(StageConfig):
    """Architecture, budget, optimizer, schedule. Defaults: the paper (3.1, 3.4) and upstream's train/pretrain.py."""

    shape: ModelShape = Field(default=ModelShape(), description="architecture (paper 3.1, Table 1); a parent must have the same")
    sequence_length: int = Field(default=2000, gt=1, description="tokens in a window (paper 3.4: 2,000, then 4,000)")
    tokens: int = Field(default=10**12, gt=0, description="token budget of this phase; rounded down to whole steps")
    batch_windows: int = Field(
        default=512, gt=0, description="windows in an optimizer step (upstream: 64 GPUs x 1 x accumulation 8)"
    )
    learning_rate: float = Field(default=2e-6, gt=0, description="peak (paper 3.4; upstream's scripts: 1e-5, 2e-5)")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="end of the cosine, as a share of the peak (paper 3.4)")
    warmup_steps: int = Field(default=2000, ge=0, description="linear warmup, optimizer steps (upstream train/pretrain.py)")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW (paper 3.4)")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW (paper 3.4)")
    eps: float = Field(default=1e-8, gt=0, description="AdamW (paper 3.4)")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW, on matrices only (paper 3.4)")
    grad_clip: float = Field(default=1.0, gt=0, description="largest global gradient norm (upstream train/pretrain.py)")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on attention weights and on the feed-forward (paper 3.1)")
    document_mask: bool = Field(
        default=True, description="attention stays within a document (upstream trains each document by itself)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp16", description="of matrix products; weights and optimizer are float32 (paper 3.4: FP16 mixed)"
    )
    engine: Literal["torch", "colossalai"] = Field(
        default="torch",
        description="who trains: PyTorch's FSDP2, or Colossal-AI as the paper (3.4). Part of the key: in half precision they round differently",
    )
    seed: int = Field(default=0, description="fresh weights, data order, dropout")
    micro_batch: Operational[int] = Field(default=1, gt=0, description="windows in one forward pass")
    recompute: Operational[Literal["none", "selective", "full"]] = Field(
        default="none",
        description="activation checkpointing (3.4). full: a block keeps its input alone, a third more work; selective: it keeps the results "
        "of matrix products and attention kernels, and computes what is cheap again",
    )
    compile: Operational[bool] = Field(
        default=False, description="engine 'torch': torch.compile makes the blocks' kernels (for GPUs; not tried on one, and slower on a CPU)"
    )
    eval_windows: Operational[int] = Field(default=64, ge=0, description="held-out windows to measure the loss on")
    eval_every: Operational[int] = Field(default=500, gt=0, description="steps between two measurements")
    checkpoint_every: Operational[int] = Field(default=500, gt=0, description="steps between two checkpoints")
    log_every: Operational[int] = Field(default=10, gt=0, description="steps between two metric rows")
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    processes: Operational[int] = Field(default=1, gt=0, description="processes on a machine without GPUs; with GPUs, one each")
    tensor_parallel: Operational[int] = Field(default=1, gt=0, description="processes that share each matrix; the others share the batch")
    colossalai: Operational[ColossalSettings] = Field(default=ColossalSettings(), description="of engine 'colossalai' alone")
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(default="auto", description="auto: a GPU if there is one")

    @property
    def together(self) -> int:
        """Processes that work on one part of a batch."""
        return self.tensor_parallel * (self.colossalai.pipeline if self.engine == "colossalai" else 1)

    @property
    def steps(self) -> int:
        """Optimizer steps: the token budget in whole batches."""
        return self.tokens // (self.batch_windows * self.sequence_length)

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.steps < 1:
            raise ValueError(f"tokens = {self.tokens} is less than one batch of {self.batch_windows} x {self.sequence_length}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps}, but the budget is {self.steps} steps in all")
        if self.sequence_length > self.shape.max_positions:
            raise ValueError(f"sequence_length = {self.sequence_length} exceeds shape.max_positions = {self.shape.max_positions}")
        rules.require_divisible(self)
        if self.engine == "colossalai":
            rules.require_colossalai(self)
        elif self.compile and self.tensor_parallel > 1:
            raise ValueError(f"compile = true cannot be combined with tensor_parallel = {self.tensor_parallel}: set compile = false, or tensor_parallel = 1")
        elif self.colossalai.pipeline > 1:
            raise ValueError(f"engine 'torch' has no pipeline: set colossalai.pipeline = 1 (it is {self.colossalai.pipeline}), or engine = 'colossalai'")
        return self


class Pretrain(Stage[PretrainConfig], env="train", revision=2, checkpoints=True):
    """Train the decoder on packed windows: one phase, resumable at any step."""

    tokens: Input[TokenShards]
    tokenizer: Input[Tokenizer]
    parent: Input[Model] | None = None
    model: Output[Model] = output()

    match = {"tokens.sequence_length": "sequence_length"}

    @classmethod
    def interpreter(cls, config: PretrainConfig) -> str | None:
        return "colossalai" if config.engine == "colossalai" else None

    @classmethod
    def facets(cls, config: PretrainConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        source = inputs["tokenizer"][0]
        return {
            "model": {
                "architecture": "MistralForCausalLM",
                "tokenizer_digest": source.get("tokenizer_digest"),
                "vocab_size": source.get("vocab_size"),
                "context_length": config.shape.max_positions,
                "dtype": "float32",
                "chat_template_digest": "none",
            }
        }

    @classmethod
    def resources(cls, config: PretrainConfig) -> Resources:
        bytes_ = 16 * config.shape.parameters(PAPER_VOCABULARY)  # weights, gradients and two moments in float32
        memory = 2 * config.processes + 1.3 * bytes_ / 2**30
        return Resources(cpus=config.threads * config.processes, memory_gib=memory, processes=config.processes)

    @classmethod
    def work(cls, config: PretrainConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        known = [m.facets.get("vocab_size") for m in inputs.get("tokenizer", ())]
        vocabulary = int(known[0]) if known and known[0] else PAPER_VOCABULARY
        tokens = config.steps * config.batch_windows * config.sequence_length
        return Work(flops=tokens * config.shape.flops_per_token(vocabulary, config.sequence_length))
