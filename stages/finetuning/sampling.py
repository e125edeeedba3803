"""Answers of a model to many prompts at once, reproducible: the caller's random state is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from stages.formats import vocabulary


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], *, max_new: int, temperature: float, seed: int, batch: int
) -> list[list[int]]:
    """Token ids that follow each prompt, up to and with </s>, at most max_new. temperature 0: greedy."""
    device = next(model.parameters()).device
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=max_new, eos_token_id=vocabulary.EOS_ID, pad_token_id=vocabulary.UNK_ID, bos_token_id=vocabulary.BOS_ID, **options
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            longest = max(len(prompts[i]) for i in part)
            ids = torch.tensor([[vocabulary.UNK_ID] * (longest - len(prompts[i])) + list(prompts[i]) for i in part], device=device)
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in part], device=device)
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            for i, row in zip(part, out[:, longest:].tolist(), strict=True):
                answers[i] = row[: row.index(vocabulary.EOS_ID) + 1] if vocabulary.EOS_ID in row else row
    model.train(was_training)
    return answers


def texts(tokenizer: PreTrainedTokenizerBase, answers: Sequence[Sequence[int]]) -> list[str]:
    """Answers as text, without the closing </s>."""
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]  # type: ignore[misc]
