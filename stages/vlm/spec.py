"""The `vlm` stage: projector and decoder trained on image conversations, towers frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, ImageConversations, ImageFeatures, Model, VisionTowers
from stages.core.config import Operational
from stages.core.errors import ConfigError
from stages.core.renamed import Renamed
from stages.core.resources import Processes, Resources, Work
from stages.core.shrinking import Rehearsal, Shrinks, small_batch
from stages.core.stage import Facets, Input, Output, Reading, Stage, output
from stages.lib.training import validation
from stages.lib.training.config import TrainingLoopConfig
from stages.lib.training.parallel_sizes import ParallelSizes

ARCHITECTURE = "MoxinVLM"
EMBEDDING_MULTIPLE = 64
"""Rows of the embedding are padded to a multiple of it (Prismatic: 32,001 become 32,064)."""
ADDED_TOKENS = 2
"""`<PAD>`, as upstream, and `<image>`, which only holds the place of a patch."""
TOKENS_A_ROW = 700
"""What the estimate of work assumes of a row: 256 patches, and the text of a mean row of the 665K mixture (declared).
"""


def padded(entries: int) -> int:
    """Rows of the embedding for a base vocabulary."""
    return -(-(entries + ADDED_TOKENS) // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE


class VlmConfig(TrainingLoopConfig):
    """Optimizer, schedule, batches. Defaults: Moxin-VLM's `prism-moxin-dinosiglip-224px+7b` (paper 6)."""

    epochs: Annotated[int, Shrinks(wiring=1, shape=1)] = Field(
        default=2, gt=0, description="passes over the rows (paper 6)"
    )
    global_batch_size: Annotated[int, Renamed("batch_rows", until="0.3"), Shrinks(wiring=8)] = Field(
        default=128, gt=0, description="rows in an optimizer step, all with an image or all without"
    )
    learning_rate: float = Field(default=2e-5, gt=0, description="peak")
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="share of the steps with a linear warmup; then a cosine to 0"
    )
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW, on matrices only")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW (PyTorch's default, which upstream keeps)")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW (PyTorch's default, which upstream keeps)")
    eps: float = Field(default=1e-8, gt=0, description="AdamW (PyTorch's default, which upstream keeps)")
    grad_clip: float = Field(default=1.0, gt=0, description="largest global gradient norm")
    max_length: Annotated[int, Shrinks(wiring=512)] = Field(
        default=2048, gt=1, description="tokens of a row, patches included; longer ones are cut"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="of matrix products; weights and optimizer are float32"
    )
    seed: int = Field(default=7, description="fresh weights of the projector, order of the rows")
    micro_batch_size: Annotated[Operational[int], Renamed("micro_rows", until="0.3"), Shrinks(wiring=2)] = Field(
        default=16, gt=0, description="rows in one forward pass of one process"
    )
    recompute: Operational[Literal["none", "selective", "full"]] = Field(
        default="none",
        description=(
            "activation checkpointing. full: a block keeps its input alone, a third more work; selective: it keeps the"
            " results of matrix products and attention kernels, and computes what is cheap again"
        ),
    )
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads of a process")
    parallel: Operational[ParallelSizes] = Field(
        default=ParallelSizes(), description="how the training is spread over the processes: data and zero alone"
    )
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(
        default="auto", description="auto: GPUs if there are any"
    )

    @model_validator(mode="after")
    def _spread(self) -> VlmConfig:
        validation.require_data_parallel(self)
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """Whole batches for the processes that there are: how many follows from the images."""
        return values | {"global_batch_size": small_batch(values, rehearsal, rehearsal.ranks)}


class TrainVlm(Stage[VlmConfig], env="vlm", revision=1, checkpoints=True, reproducible="same hardware"):
    """Train projector and decoder on image conversations (single stage, towers frozen), resumable at any step."""

    base: Input[Model]
    conversations: Input[ImageConversations]
    towers: Input[VisionTowers]
    features: Input[ImageFeatures] | None = None
    model: Output[Model] = output()

    reads: ClassVar[Mapping[str, Reading]] = {"features": "stream"}

    @classmethod
    def facets(cls, config: VlmConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        base = inputs["base"][0]
        entries = base.get("vocab_size")
        return {
            "model": {
                "architecture": ARCHITECTURE,
                "vocab_size": None if entries is None else padded(int(entries)),
                "context_length": base.get("context_length"),
                "dtype": "float32",
                "chat_template_digest": "none",
            }
        }

    @classmethod
    def check_facets(cls, node: str, config: VlmConfig, inputs: Mapping[str, Sequence[tuple[str, Facets]]]) -> None:
        super().check_facets(node, config, inputs)
        producer, base = inputs["base"][0]
        if base.get("architecture") not in (None, "MistralForCausalLM"):
            raise ConfigError(
                f"node {node}: its base from {producer} is a {base['architecture']}; wire a language model"
                " (MistralForCausalLM)"
            )
        context, (maker, towers) = base.get("context_length"), inputs["towers"][0]
        if context is not None and config.max_length > int(context):
            raise ConfigError(
                f"node {node}: max_length is {config.max_length}, but its base from {producer} has {context} positions"
            )
        patches = towers.get("patches")
        if patches is not None and int(patches) + 2 > config.max_length:
            raise ConfigError(
                f"node {node}: max_length is {config.max_length}, but an image from {maker} takes {patches} tokens"
            )

    @classmethod
    def resources(cls, config: VlmConfig) -> Resources:
        """For one process; with more, a profile says how many cores and how much memory they have together."""
        return Resources(cpus=config.threads, memory_gib=4)

    @classmethod
    def processes(cls, config: VlmConfig) -> Processes:
        return Processes.TORCHRUN

    @classmethod
    def check_resources(cls, node: str, config: VlmConfig, resources: Resources) -> None:
        validation.require_resources(node, config, resources)

    @classmethod
    def work(cls, config: VlmConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        rows = sum(int(m.meta.get("rows", 0)) for m in inputs.get("conversations", ()))
        parameters = sum(int(m.meta.get("parameters", 0)) for m in inputs.get("base", ()))
        return Work(flops=6.0 * config.epochs * rows * TOKENS_A_ROW * parameters)

    @classmethod
    def smaller(cls, config: VlmConfig) -> VlmConfig | None:
        return config.halved("micro_batch_size") or (
            config.operated(recompute="full") if config.recompute != "full" else None
        )
