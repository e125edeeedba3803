"""Which rows a step trains on, and the loss of a micro-batch of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.lib.training.ahead import Ahead
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.vision.conversations import ImageReader
from stages.lib.vision.features import Features
from stages.lib.vision.image_decoding import MAX_BYTES, decode
from stages.lib.vision.modeling_moxin_vlm import MoxinVLM, pixel_values, tower_features
from stages.lib.vision.towers import load_towers
from stages.vlm.batches import Rows, epoch_batches, steps_an_epoch
from stages.vlm.spec import VlmConfig

PatchFeatures = Callable[[list[str]], Tensor]
"""Patch features [B, P, F] of images by name."""
AHEAD_BYTES = 64 << 20
"""Stored features that lie ready: those of about three steps of 16 rows."""


@dataclass(frozen=True)
class RowBatch:
    """Numbers of the rows of one forward pass, all with an image or all without."""

    rows: np.ndarray
    predicted: int
    """Tokens of answers."""
    tokens: int
    features: Tensor | None = None
    """Of the rows' images [B, P, F], where they were read ahead."""


class RowData:
    """The rows of one process (`TrainingData` of the training library): step n's follow from the seed and n alone."""

    def __init__(self, config: VlmConfig, rows: Rows, dims: ParallelDims, stored: Features | None = None) -> None:
        """stored: features that are read ahead of the steps."""
        self._config, self._rows, self._dims, self._stored = config, rows, dims, stored
        images = int((rows.images >= 0).sum())
        self._epoch_steps = steps_an_epoch(images, len(rows) - images, config.global_batch_size)
        self.steps = config.epochs * self._epoch_steps
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])
        self._ahead = Ahead(self._read, self.steps, AHEAD_BYTES)

    @property
    def total_tokens(self) -> None:
        """Not known before: rows are repeated to fill a batch."""
        return

    @property
    def loading_seconds(self) -> float:
        """What this process's part of a batch takes to make, on average; 0: none was made."""
        return self._ahead.seconds

    def micro_batches(self, step: int) -> list[RowBatch]:
        """This process's part of the global batch of step `step`, counted from 0."""
        return self._ahead.take(step)

    def close(self) -> None:
        """Read no more."""
        self._ahead.close()

    def _read(self, step: int) -> tuple[list[RowBatch], int]:
        """The batches of a step and what they hold, in the thread that is ahead of it.

        A global batch is sorted by length: with every n-th of its rows each process has about as much work.
        """
        epoch, offset = divmod(step, self._epoch_steps)
        if self._epoch[0] != epoch:
            rows, config = self._rows, self._config
            batches = epoch_batches(rows.lengths, rows.images, config.global_batch_size, config.seed, epoch)
            self._epoch = epoch, batches
        rows = self._epoch[1][offset][self._dims.data_parallel_rank :: self._dims.data_parallel_size]
        size = self._config.micro_batch_size
        batches = [self._batch(rows[start : start + size]) for start in range(0, len(rows), size)]
        return batches, sum(batch.features.nbytes for batch in batches if batch.features is not None)

    def _batch(self, rows: np.ndarray) -> RowBatch:
        images, features = self._rows.images[rows], None
        if self._stored is not None and images[0] >= 0:
            features = self._stored.batch([self._rows.names[image] for image in images])
        counts = int(self._rows.answer_counts[rows].sum()), int(self._rows.lengths[rows].sum())
        return RowBatch(rows, *counts, features)


class AnswerLoss:
    """Summed cross-entropy of the answers of a batch of rows."""

    def __init__(self, model: MoxinVLM, rows: Rows, features: PatchFeatures | None, device: torch.device) -> None:
        """features: of images whose batch brings none."""
        self._model, self._rows, self._features, self._device = model, rows, features, device
        self._pad_id = int(model.config.pad_token_id or 0)

    def __call__(self, batch: RowBatch) -> Tensor:
        """A scalar."""
        inputs = {key: value.to(self._device) for key, value in self._rows.tensors(batch.rows, self._pad_id).items()}
        images = self._rows.images[batch.rows]
        features = batch.features
        if features is None and images[0] >= 0:
            assert self._features is not None
            features = self._features([self._rows.names[image] for image in images])
        features = None if features is None else features.to(self._device)
        loss = self._model(**inputs, patch_features=features, num_items_in_batch=1).loss
        assert loss is not None
        return loss


class TowerFeatures:
    """Patch features from the towers, each time they are asked for: what stored features save."""

    def __init__(self, towers: Path, archives: list[Path], device: torch.device) -> None:
        dino, siglip = load_towers(towers)
        self._dino, self._siglip, self._device = dino.to(device), siglip.to(device), device
        self._size = int(siglip.config.image_size)
        self._images = ImageReader(archives, MAX_BYTES)

    @torch.no_grad()
    def __call__(self, names: list[str]) -> Tensor:
        """Patch features [B, P, F]."""
        pixels = pixel_values([decode(self._images[name])[0] for name in names], self._size)
        return tower_features(self._dino, self._siglip, pixels.to(self._device))
