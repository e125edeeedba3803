"""What a model is worth on held-out rows: log-probabilities of labels, summed row by row. No dropout, no randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stages.lib.finetuning.encoding import IGNORED, Row
from stages.lib.finetuning.inference_memory import CHUNK


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


def by_tokens(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Numbers of rows, shortest first, in batches of at most `budget` tokens with their padding; a row is never
    split.
    """
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) + 1) * lengths[i] > budget:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


@torch.no_grad()
def label_log_probs(
    model: torch.nn.Module, rows: Sequence[Row], tokens: int, on_rows: Callable[[int], None] = lambda rows: None
) -> tuple[list[float], list[int]]:
    """Summed log-probability of each row's labels (nats), and how many labels it has.

    tokens: in a forward pass at most (a longer row is one by itself). on_rows: called with the number of rows that were
    read since.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums, counts = [0.0] * len(rows), [0] * len(rows)
    try:
        for part in by_tokens([len(row["input_ids"]) for row in rows], tokens):
            results = _sums(model, [rows[i] for i in part], device)
            for i, total, count in zip(part, *results, strict=True):
                sums[i], counts[i] = total, count
            on_rows(len(part))
    finally:
        model.train(was_training)
    return sums, counts


def _sums(model: torch.nn.Module, rows: Sequence[Row], device: torch.device) -> tuple[list[float], list[int]]:
    ids, labels, mask = pad_rows(rows, device)
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]  # type: ignore[operator, union-attr]
    targets = labels[:, 1:]
    is_label = targets != IGNORED
    picked, states = targets[is_label], hidden[is_label]
    del hidden
    values = torch.cat([_log_probs(model, s, t) for s, t in zip(states.split(CHUNK), picked.split(CHUNK), strict=True)])
    per_token = torch.zeros(targets.shape, dtype=torch.float64, device=device).masked_scatter(is_label, values.double())
    return per_token.sum(1).tolist(), is_label.sum(1).tolist()


def _log_probs(model: torch.nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    logits = model.lm_head(states).float()  # type: ignore[operator]
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
