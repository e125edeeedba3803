"""What the library reads of a stage's configuration. Each stage declares its fields itself, with its own defaults; what
is the same for every stage that `trainer.Trainer` trains stands here.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from pydantic import Field

from stages.core.config import Operational, StageConfig
from stages.core.shrinking import Shrinks
from stages.lib.modeling.shape import ModelShape
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.lib.training.spikes import SpikePolicy


class TrainingLoopConfig(StageConfig):
    """How the loop of a training is watched and saved: the same in every stage that has it."""

    spikes: SpikePolicy = Field(
        default=SpikePolicy(),
        description="losses and gradients that are no numbers, or spikes. Part of the key where it is not the default",
    )
    checkpoint_every: Annotated[Operational[int], Shrinks(wiring=1, shape=3)] = Field(
        default=500, gt=0, description="steps between two checkpoints"
    )
    keep_checkpoints: Operational[int] = Field(
        default=2, gt=0, description="newest checkpoints that are kept, with those that `spikes` may go back to"
    )
    keep_every: Operational[int] = Field(
        default=0,
        ge=0,
        description="beside them the first checkpoint of each so many steps, until the result is published; 0: none",
    )
    log_every: Annotated[Operational[int], Shrinks(wiring=1, shape=1)] = Field(
        default=10, gt=0, description="steps between two metric rows"
    )
    compare_every: Annotated[Operational[int], Shrinks(wiring=1, shape=3)] = Field(
        default=0,
        ge=0,
        description=(
            "steps between two looks for silent corruption, which read weights and moments twice (docs/decisions/"
            "spikes.md); each checkpoint is then looked at, too; 0: none"
        ),
    )
    stall_seconds: Operational[float] = Field(
        default=300.0,
        ge=0,
        description=(
            "without a step, and without a checkpoint or measurement, after which a training that takes steps ends as"
            " preempted, with the stacks of its processes; 20 steps at least; 0: never"
        ),
    )

    def identity(self) -> dict[str, Any]:
        """Without the policy for spikes where it is the default."""
        return self.spikes.keyed(super().identity())


class OptimizerConfig(Protocol):
    """AdamW's settings."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


class TrainerConfig(Protocol):
    """What the loop reads."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def keep_every(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def spikes(self) -> SpikePolicy: ...
    @property
    def compare_every(self) -> int: ...
    @property
    def stall_seconds(self) -> float: ...


class BackendConfig(OptimizerConfig, Protocol):
    """What `fsdp.TorchBackend` reads."""

    @property
    def grad_clip(self) -> float: ...
    @property
    def precision(self) -> str: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def parallel(self) -> ParallelSizes: ...


class ParallelConfig(Protocol):
    """What says whether a number of processes fits: `validation.require_fitting_processes`."""

    @property
    def engine(self) -> str: ...
    @property
    def global_batch_size(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def parallel(self) -> ParallelSizes: ...


class DecoderConfig(BackendConfig, ParallelConfig, Protocol):
    """What training the decoder (`stages.lib.modeling.decoder.MoxinLM`) needs beside."""

    @property
    def shape(self) -> ModelShape: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def compile(self) -> bool: ...
    @property
    def device(self) -> str: ...
