"""Small decoders with drawn weights, and token ids for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.recompute import Policy
from stages.lib.modeling.shape import ModelShape

VOCAB = 97


def shape(**changes: Any) -> ModelShape:
    small: dict[str, Any] = {"layers": 2, "hidden": 32, "intermediate": 48, "heads": 4, "kv_heads": 2, "head_dim": 8}
    return ModelShape(**{**small, "window": None, "max_positions": 256, **changes})


def build(
    seed: int = 0, dropout: float = 0.0, recompute: Policy = "none", vocab_size: int = VOCAB, **changes: Any
) -> MoxinLM:
    """A model whose weights are far larger than at the start of a training, so that differences show."""
    model = MoxinLM(shape(**changes), vocab_size, dropout, recompute)
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
