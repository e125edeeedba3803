"""Answers of a model to many prompts at once, reproducible: the caller's random state is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from stages.lib.engines.generation import Sampling
from stages.lib.finetuning.log_probs import by_tokens
from stages.lib.formats import vocabulary


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    rows: int,
    tokens: int,
    on_answers: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """Token ids that follow each prompt, up to and with </s>.

    rows, tokens: prompts in a batch, and their tokens, at most. on_answers: called with the number of prompts that were
    answered since.
    """
    device = next(model.parameters()).device
    options: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=vocabulary.EOS_ID,
        pad_token_id=vocabulary.UNK_ID,
        bos_token_id=vocabulary.BOS_ID,
        **options,
    )
    answers: list[list[int]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(sampling.seed)
            for many in by_tokens([len(prompt) for prompt in prompts], tokens):
                for part in (many[start : start + rows] for start in range(0, len(many), rows)):
                    _answer(model, prompts, part, answers, config, device)
                    on_answers(len(part))
    finally:
        model.train(was_training)
    return answers


def _answer(
    model: Any,
    prompts: Sequence[Sequence[int]],
    part: Sequence[int],
    answers: list[list[int]],
    config: GenerationConfig,
    device: torch.device,
) -> None:
    longest = max(len(prompts[i]) for i in part)
    ids = torch.tensor(
        [[vocabulary.UNK_ID] * (longest - len(prompts[i])) + list(prompts[i]) for i in part], device=device
    )
    mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in part], device=device)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    for i, row in zip(part, out[:, longest:].tolist(), strict=True):
        answers[i] = row[: row.index(vocabulary.EOS_ID) + 1] if vocabulary.EOS_ID in row else row


def texts(tokenizer: PreTrainedTokenizerBase, answers: Sequence[Sequence[int]]) -> list[str]:
    """Answers as text, without the closing </s>."""
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]  # type: ignore[misc]
