"""What the library reads of a stage's configuration. Each stage declares these fields itself, with its own defaults."""

from __future__ import annotations

from typing import Protocol

from stages.lib.modeling.shape import ModelShape
from stages.lib.training.parallel_sizes import ParallelSizes


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
    def log_every(self) -> int: ...


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
