"""The `probe_train` stage: many steps, checkpoints, a configuration that must fit its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from stages.core.artifacts import ArtifactManifest, Model, Tokenizer, TokenShards
from stages.core.config import Operational, StageConfig
from stages.core.resources import Processes, Resources, Work
from stages.core.stage import Facets, Input, Output, Stage, output


class Shape(StageConfig):
    """A nested table."""

    layers: int = Field(default=2, gt=0, description="layers")
    hidden: int = Field(default=8, gt=0, description="width")


class TrainConfig(StageConfig):
    """What to train, and how slowly."""

    learning_rate: float = Field(default=0.1, gt=0, description="step size")
    sequence_length: int | None = Field(default=None, description="tokens in a window; None takes what comes")
    steps: int = Field(default=4, gt=0, description="updates")
    shape: Shape = Field(default=Shape(), description="the model")
    workers: Operational[int] = Field(default=1, ge=1, description="processes")
    save_every: Operational[int] = Field(default=2, ge=1, description="steps between checkpoints")
    step_seconds: Operational[float] = Field(default=0.0, ge=0, description="how long a step takes")
    die_after: Operational[int | None] = Field(
        default=None, description="an attempt that starts afresh fails after this step"
    )


class Train(Stage[TrainConfig], env="train", revision=1, checkpoints=True):
    """Train in small steps."""

    shards: Input[TokenShards]
    tokenizer: Input[Tokenizer]
    parent: Input[Model] | None = None
    model: Output[Model] = output()
    match: ClassVar[Mapping[str, str]] = {"shards.sequence_length": "sequence_length"}

    @classmethod
    def facets(cls, config: TrainConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        shards = inputs["shards"][0]
        return {"model": {name: shards.get(name) for name in ("tokenizer_digest", "vocab_size")}}

    @classmethod
    def processes(cls, config: TrainConfig) -> Processes:
        return Processes.TORCHRUN

    @classmethod
    def resources(cls, config: TrainConfig) -> Resources:
        return Resources(cpus=config.workers, memory_gib=1)

    @classmethod
    def work(cls, config: TrainConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        return Work(flops=1e15 * config.steps)
