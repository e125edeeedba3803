"""Rows as token ids, and which of them make a batch: all with an image or all without, of about one length.

Which rows are in step n follows from the seed and n alone, so a resumed run reads what an unbroken one would have read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from stages.lib.vision.conversations import Conversation
from stages.lib.vision.prompts import IGNORED, encode

MEGABATCH = 16
"""Batches whose rows are sorted by length together: enough to leave little padding, few enough to keep chance in the
order.
"""


@dataclass(frozen=True)
class Rows:
    """Token ids of all rows, end to end. images: number of the row's image, -1 without one."""

    ids: np.ndarray
    answers: np.ndarray
    starts: np.ndarray
    images: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.starts)

    @cached_property
    def answer_counts(self) -> np.ndarray:
        """Tokens of each row that the loss is taken of."""
        return np.add.reduceat(self.answers.astype(np.int64), self.starts[:-1])

    def tensors(self, numbers: np.ndarray, pad_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels [B, T] of these rows, padded on the right."""
        width = int(self.lengths[numbers].max())
        ids = np.full((len(numbers), width), pad_id, np.int64)
        labels = np.full((len(numbers), width), IGNORED, np.int64)
        mask = np.zeros((len(numbers), width), np.int64)
        for at, number in enumerate(numbers):
            part = slice(int(self.starts[number]), int(self.starts[number + 1]))
            length = part.stop - part.start
            ids[at, :length], mask[at, :length] = self.ids[part], 1
            labels[at, :length] = np.where(self.answers[part], self.ids[part], IGNORED)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }


def encode_rows(
    rows: Iterable[Conversation], tokenizer: Tokenizer, image_id: int, patches: int, max_length: int
) -> tuple[Rows, Counter[str]]:
    """Encode all rows; what is left out or cut is counted by reason."""
    ids: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    images: list[int] = []
    numbers: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        encoded = encode(tokenizer, row.turns, image_id, patches if row.image is not None else 0, max_length)
        if not encoded.answer_tokens:
            counts["left out: no answer within max_length"] += 1
            continue
        counts["cut at max_length"] += len(encoded.ids) == max_length
        ids.append(np.array(encoded.ids, np.int32))
        answers.append(np.array(encoded.labels) != IGNORED)
        images.append(-1 if row.image is None else numbers.setdefault(row.image, len(numbers)))
    starts = np.concatenate([[0], np.cumsum([len(part) for part in ids])]).astype(np.int64)
    if not ids:
        return Rows(np.zeros(0, np.int32), np.zeros(0, bool), starts, np.zeros(0, np.int64), []), counts
    whole = Rows(np.concatenate(ids), np.concatenate(answers), starts, np.array(images, np.int64), list(numbers))
    return whole, +counts


def steps_an_epoch(with_image: int, without: int, batch: int) -> int:
    """Optimizer steps of an epoch: each kind of row fills its own batches."""
    return -(-with_image // batch) + -(-without // batch)


def epoch_batches(lengths: np.ndarray, images: np.ndarray, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch, each of `batch` row numbers, longest row first within a batch.

    Every row is in at least one; the last batch of a kind is filled up with rows from that kind's beginning, as
    upstream does. The batch with the longest row comes first: what does not fit into memory fails at once, not after a
    day.
    """
    rng = np.random.default_rng([seed, epoch])
    batches: list[np.ndarray] = []
    for kind in (images >= 0, images < 0):
        rows = np.flatnonzero(kind)
        if not len(rows):
            continue
        order = rng.permutation(rows)
        missing = -len(order) % batch
        order = np.concatenate([order, np.resize(order, missing)]) if missing else order
        for start in range(0, len(order), batch * MEGABATCH):
            part = order[start : start + batch * MEGABATCH]
            part = part[np.argsort(-lengths[part], kind="stable")]
            batches.extend(part[i : i + batch] for i in range(0, len(part), batch))
    batches = [batches[i] for i in rng.permutation(len(batches))]
    longest = max(range(len(batches)), key=lambda i: int(lengths[batches[i][0]]))
    batches[0], batches[longest] = batches[longest], batches[0]
    return batches
