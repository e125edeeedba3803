"""Which windows a step trains on: a function of the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.lib.formats.shards import Shards
from stages.lib.training.backends.base import WindowBatch
from stages.lib.training.parallel_dims import ParallelDims
from stages.pretrain.spec import PretrainConfig

MOST_EPOCHS = 4
"""Repeating data beyond it is worth little (Muennighoff et al. 2023, arXiv 2305.16264)."""


def window_numbers(seed: int, windows: int, start: int, count: int) -> np.ndarray:
    """Numbers of windows start .. start + count of the endless sequence of seeded permutations, one an epoch."""
    numbers: list[np.ndarray] = []
    while count:
        epoch, offset = divmod(start, windows)
        part = np.random.default_rng([seed, epoch]).permutation(windows)[offset : offset + count]
        numbers.append(part)
        start, count = start + len(part), count - len(part)
    return np.concatenate(numbers)


class WindowData:
    """Training and held-out windows of one process (`TrainingData` of the training library)."""

    def __init__(self, config: PretrainConfig, train: Shards, heldout: Shards | None, dims: ParallelDims) -> None:
        self._config, self.train, self.heldout, self._dims = config, train, heldout, dims

    @property
    def total_tokens(self) -> int:
        """Of the whole phase."""
        return self._config.steps * self._config.global_batch_size * self._config.sequence_length

    def micro_batches(self, step: int) -> list[WindowBatch]:
        """This process's part of the global batch of step `step`, counted from 0."""
        config, dims = self._config, self._dims
        first, size = step * config.global_batch_size, config.micro_batch_size
        sequences = dims.local_part(np.arange(first, first + config.global_batch_size))  # numbers in the whole run
        numbers = dims.local_part(window_numbers(config.seed, len(self.train), first, config.global_batch_size))
        return [
            self._batch(self.train, numbers[i : i + size], sequences[i : i + size])
            for i in range(0, len(numbers), size)
        ]

    def heldout_batches(self) -> Iterator[tuple[WindowBatch, bool]]:
        """The first `eval_windows` held-out windows, shared by the parts of the batch; False beside a batch that does
        not count, of a process that has none left while others have.
        """
        assert self.heldout is not None
        count = min(len(self.heldout), self._config.eval_windows)
        size, parts, part = self._config.micro_batch_size, self._dims.data_parallel_size, self._dims.data_parallel_rank
        for start in range(0, count, size * parts):
            numbers = np.arange(start + size * part, min(start + size * (part + 1), count))
            yield self._batch(self.heldout, numbers if len(numbers) else np.zeros(1, np.int64)), len(numbers) > 0

    def _batch(self, shards: Shards, numbers: np.ndarray, sequences: np.ndarray | None = None) -> WindowBatch:
        ids, documents = shards.batch(numbers)
        run_numbers = None if sequences is None else torch.from_numpy(np.asarray(sequences, np.int64))
        on_device = torch.from_numpy(ids).to(self._dims.device)
        if not self._config.document_mask:
            return WindowBatch(on_device, None, run_numbers, ids.shape[0] * (ids.shape[1] - 1))
        predicted = int((documents[:, 1:] == documents[:, :-1]).sum())
        return WindowBatch(on_device, torch.from_numpy(documents).to(self._dims.device), run_numbers, predicted)


def open_windows(ctx: Context[PretrainConfig], dims: ParallelDims) -> WindowData:
    """The phase's windows, with held-out ones if the shards have some and they are wanted.

    Raises ConfigError when they have another length, InputError when there is none.
    """
    config, folder = ctx.config, ctx.input("tokens").path
    train = Shards.open(folder)
    if train.sequence_length != config.sequence_length:
        raise ConfigError(
            f"{ctx.node}.sequence_length is {config.sequence_length}, its windows have {train.sequence_length}"
        )
    if not len(train):
        raise InputError(f"{ctx.node}: its shards hold no window")
    epochs = config.steps * config.global_batch_size / len(train)
    if epochs > MOST_EPOCHS:
        ctx.log(f"the token budget repeats the data {epochs:.1f} times", "warning")
    evaluates = config.eval_windows > 0 and (Path(folder) / "heldout" / "index.json").is_file()
    return WindowData(config, train, Shards.open(Path(folder) / "heldout") if evaluates else None, dims)
