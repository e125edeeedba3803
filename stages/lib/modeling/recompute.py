"""Activation checkpointing by policy: what a block's backward pass finds in memory, and what it computes again.

- `none`: everything is kept.
- `selective`: the results of matrix products and of a GPU's attention kernels are kept; norms, rotary angles, SwiGLU,
  dropout and
  type conversions are computed again. On a CPU attention goes block by block through small products, and is computed
  again, too: its weights are the most that a block keeps there.
- `full`: a block's input alone is kept.

No gradient changes: what is computed again is computed alike, with the same dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Policy = Literal["none", "selective", "full"]
aten = torch.ops.aten
KEPT: set[Any] = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
    # Not for its work: a kept attention draws no random numbers again, and what is drawn after it would not be the
    # same.
    aten.native_dropout.default,
}
"""Operators whose results `selective` keeps: those that multiply matrices. Batched products are left out: they are
those of attention without a kernel of its own, as large as the square of the context.
"""


def _decide(context: Any, operator: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def selective_contexts() -> tuple[Any, Any]:
    """`context_fn` of PyTorch's checkpoint: what `selective` does in the forward pass and when it computes again."""
    return create_selective_checkpoint_contexts(_decide)


def through(function: Callable[..., Tensor], policy: Policy, *arguments: Any) -> Tensor:
    """function(*arguments), of which the backward pass keeps what `policy` says."""
    if policy == "none" or not torch.is_grad_enabled():
        return function(*arguments)
    if policy == "full":
        return checkpoint(function, *arguments, use_reentrant=False)  # type: ignore[no-any-return]
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=selective_contexts)  # type: ignore[no-any-return]
