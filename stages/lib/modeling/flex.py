"""Attention on a GPU with packed documents or a window: FlexAttention, which skips the blocks that nobody sees.

The mask is a function; what exists in memory is which blocks of 128 keys a block of 128 queries sees: (T / 128)^2
numbers, made from the first and last document of each block and never from the square of the length. FlexAttention has
no dropout and, in torch 2.13, no backward pass on a CPU: see `decoder.MoxinLM.attention_context` for what is used then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""FlexAttention's own default."""


def block_mask(length: int, window: int | None, document_ids: Tensor | None, device: torch.device) -> BlockMask:
    """Who sees whom, for document_ids [B, T] or all alike. Exact: blocks are chosen generously, and the function
    decides inside them.
    """
    count = -(-length // BLOCK)
    first = torch.arange(count, device=device) * BLOCK
    last = (first + BLOCK - 1).clamp(max=length - 1)
    seen = first[None, :] <= last[:, None]  # [queries' blocks, keys' blocks]
    whole = last[None, :] <= first[:, None]
    if window is not None:
        seen = seen & (first[:, None] - last[None, :] < window)
        whole = whole & (last[:, None] - first[None, :] < window)
    seen, whole = seen[None], whole[None]
    if document_ids is not None:
        padded = F.pad(document_ids, (0, count * BLOCK - length), mode="replicate").unflatten(1, (count, BLOCK))
        low, high = padded.amin(-1), padded.amax(-1)
        seen = seen & (low[:, None, :] <= high[:, :, None]) & (high[:, None, :] >= low[:, :, None])
        same = (low[:, None, :] == high[:, :, None]) & (high[:, None, :] == low[:, :, None])
        whole = whole & same & (low == high)[:, :, None]
    whole = whole & seen
    partial = (seen & ~whole)[:, None]
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(whole[:, None]), BLOCK, _mask(window, document_ids), (length, length)
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the last dimension are chosen, and which: those first, in order."""
    order = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()


def _mask(window: int | None, document_ids: Tensor | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = key <= query
        if window is not None:
            allowed = allowed & (query - key < window)
        if document_ids is not None:
            allowed = allowed & (document_ids[batch, query] == document_ids[batch, key])
        return allowed

    return mask


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled where it is meant to run fast: without that it makes the whole matrix."""
    return torch.compile(flex_attention) if device == "cuda" else flex_attention


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """query [B, H, T, E], key and value [B, K, T, E] -> [B, H, T, E]."""
    kernel = flex_attention if torch.compiler.is_compiling() else _kernel(query.device.type)
    return kernel(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])


def problem(device: torch.device) -> str | None:
    """What keeps FlexAttention's kernels from being made on this machine, as one line; None when they can be.

    Triton and inductor call a C compiler when a kernel is first used: without one a training would find out at its
    first evaluation, hours later.
    """
    query, ids = torch.randn(1, 2, BLOCK, 16, device=device), torch.zeros(1, BLOCK, dtype=torch.int64, device=device)
    query.requires_grad_(device.type == "cuda")  # torch 2.13 has no backward pass on a CPU
    try:
        out = torch.compile(flex_attention)(query, query, query, block_mask=block_mask(BLOCK, None, ids, device))
        if query.requires_grad:
            out.sum().backward()
            torch.cuda.synchronize()
    except Exception as error:  # each of Triton, inductor and dynamo has errors of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
    return None
