"""Which windows a step trains on: a function of the seed and the step's number alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.lib.formats.shards import INDEX, Shards
from stages.lib.training.ahead import Ahead
from stages.lib.training.backends.base import WindowBatch
from stages.lib.training.data_order import DataOrder, block_windows
from stages.lib.training.parallel_dims import ParallelDims
from stages.pretrain.spec import PretrainConfig

HELDOUT = "heldout/"
MOST_EPOCHS = 4
"""Repeating data beyond it is worth little (Muennighoff et al. 2023, arXiv 2305.16264)."""
AHEAD_BYTES = 16 << 20
"""Windows that lie ready: of a process that takes 8 of 2,000 ids a step, those of 20 minutes."""
ORDERED = 32
"""Steps whose order is worked out together: for one it takes as long."""


class WindowData:
    """Training and held-out windows of one process (`TrainingData` of the training library)."""

    def __init__(self, config: PretrainConfig, train: Shards, heldout: Shards | None, dims: ParallelDims) -> None:
        self._config, self.train, self.heldout, self._dims = config, train, heldout, dims
        batch = config.global_batch_size
        block = block_windows(len(train), batch, train.page)
        if len(train) > train.page * (train.cache_bytes // train.page_bytes):
            train.page = block  # more would be read for the sake of one block, and be gone before its others come
        self._order = DataOrder(len(train), batch, block, config.seed)
        self._ordered = (0, np.empty((0, 0), np.int64))
        # the pages that its places of the batch are at, and those that they come to next
        train.cache_bytes = max(train.cache_bytes, 2 * batch // dims.data_parallel_size * train.page_bytes)
        self._ahead = Ahead(self._read, config.steps, AHEAD_BYTES)

    @property
    def total_tokens(self) -> int:
        """Of the whole phase."""
        return self._config.steps * self._config.global_batch_size * self._config.sequence_length

    @property
    def loading_seconds(self) -> float:
        """What this process's part of a batch takes to read, on average; 0: none was read."""
        return self._ahead.seconds

    def micro_batches(self, step: int) -> list[WindowBatch]:
        """This process's part of the global batch of step `step`, counted from 0."""
        size, sequences, windows = self._config.micro_batch_size, self._sequences(step), self._ahead.take(step)
        return [
            self._batch(self.train, windows[i : i + size], sequences[i : i + size])
            for i in range(0, len(windows), size)
        ]

    def _sequences(self, step: int) -> np.ndarray:
        """The numbers, in the whole run, of what this process trains on in a step."""
        first = step * self._config.global_batch_size
        return self._dims.local_part(np.arange(first, first + self._config.global_batch_size))

    def _read(self, step: int) -> tuple[np.ndarray, int]:
        """The windows of a step, in the thread that is ahead of it."""
        first, numbers = self._ordered
        if not first <= step < first + len(numbers):
            steps = [self._sequences(n) for n in range(step, step + ORDERED)]
            numbers = self._order.numbers(np.concatenate(steps)).reshape(ORDERED, -1)
            first, _ = self._ordered = step, numbers
        windows = self.train.windows(numbers[step - first])
        return windows, windows.nbytes

    def heldout_batches(self) -> Iterator[tuple[WindowBatch, bool]]:
        """The first `eval_windows` held-out windows, shared by the parts of the batch; False beside a batch that does
        not count, of a process that has none left while others have.
        """
        assert self.heldout is not None
        count = min(len(self.heldout), self._config.eval_windows)
        size, parts, part = self._config.micro_batch_size, self._dims.data_parallel_size, self._dims.data_parallel_rank
        for start in range(0, count, size * parts):
            numbers = np.arange(start + size * part, min(start + size * (part + 1), count))
            windows = self.heldout.windows(numbers if len(numbers) else np.zeros(1, np.int64))
            yield self._batch(self.heldout, windows), len(numbers) > 0

    def close(self) -> None:
        """Read no more."""
        self._ahead.close()
        for shards in (self.train, self.heldout):
            if shards is not None:
                shards.close()

    def _batch(self, shards: Shards, windows: np.ndarray, sequences: np.ndarray | None = None) -> WindowBatch:
        ids = windows.astype(np.int64)
        run_numbers = None if sequences is None else torch.from_numpy(np.asarray(sequences, np.int64))
        on_device = torch.from_numpy(ids).to(self._dims.device)
        if not self._config.document_mask:
            return WindowBatch(on_device, None, run_numbers, ids.shape[0] * (ids.shape[1] - 1))
        documents = shards.document_ids(windows)
        predicted = int((documents[:, 1:] == documents[:, :-1]).sum())
        return WindowBatch(on_device, torch.from_numpy(documents).to(self._dims.device), run_numbers, predicted)


def open_windows(ctx: Context[PretrainConfig], dims: ParallelDims) -> WindowData:
    """The phase's windows, with held-out ones if the shards have some and they are wanted.

    Raises ConfigError when they have another length, InputError when there is none.
    """
    config, entries = ctx.config, ctx.input("tokens").entries()
    train = Shards.open(entries)
    if train.sequence_length != config.sequence_length:
        raise ConfigError(
            f"{ctx.node}.sequence_length is {config.sequence_length}, its windows have {train.sequence_length}"
        )
    if not len(train):
        raise InputError(f"{ctx.node}: its shards hold no window")
    epochs = config.steps * config.global_batch_size / len(train)
    if epochs > MOST_EPOCHS:
        ctx.log(f"the token budget repeats the data {epochs:.1f} times", "warning")
    evaluates = config.eval_windows > 0 and any(entry.path == HELDOUT + INDEX for entry in entries)
    return WindowData(config, train, Shards.open(entries, HELDOUT) if evaluates else None, dims)
