"""What a model is worth on held-out rows: log-probabilities of labels, summed row by row. No dropout, no randomness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.finetuning.encoding import IGNORED, Row

CHUNK = 8192
"""Label positions whose logits exist at one time: at 32,000 entries and float32 one gigabyte."""


def pad_rows(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and attention mask, each [rows, longest], padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[i, :length] = torch.tensor(row["input_ids"])
        labels[i, :length] = torch.tensor(row["labels"])
        mask[i, :length] = 1
    return ids.to(device), labels.to(device), mask.to(device)


def _by_length(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def label_log_probs(model: torch.nn.Module, rows: Sequence[Row], batch: int) -> tuple[list[float], list[int]]:
    """Summed log-probability of each row's labels (nats), and how many labels it has."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums, counts = [0.0] * len(rows), [0] * len(rows)
    for part in _by_length(rows, batch):
        ids, labels, mask = pad_rows([rows[i] for i in part], device)
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]  # type: ignore[operator, union-attr]
        targets = labels[:, 1:]
        wanted = targets != IGNORED
        picked, states = targets[wanted], hidden[wanted]
        values = torch.cat([_log_probs(model, s, t) for s, t in zip(states.split(CHUNK), picked.split(CHUNK), strict=True)])
        per_token = torch.zeros(targets.shape, dtype=torch.float64, device=device).masked_scatter(wanted, values.double())
        for i, total, count in zip(part, per_token.sum(1).tolist(), wanted.sum(1).tolist(), strict=True):
            sums[i], counts[i] = total, count
    model.train(was_training)
    return sums, counts


def _log_probs(model: torch.nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    logits = model.lm_head(states).float()  # type: ignore[operator]
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
