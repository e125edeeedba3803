"""Exact causal attention with a sliding window, packed documents, grouped queries and dropout; never a mask at length.

`block_attention` is the CPU's: PyTorch's fused kernel there knows no dropout (it falls back to whole matrices) and
spends the upper triangle. It goes over blocks of queries, takes the keys that a block can see (causality and window
bound them), and keeps the heads of a group together, so that keys and values are never repeated. A GPU has flash
attention, through scaled_dot_product_attention, where causality is all there is, and else `flex.py` or
`attend_in_blocks`. Shapes: B batch, T tokens, H query heads, K key-value heads, E head width, G = H / K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

BLOCK = 64
"""Queries in a block: at 256 tokens, 63 % of the square are computed. Up to two blocks are taken as one: calls cost
more.
"""
QUERIES = 512
"""Queries in a block on a GPU: at a window of 4,096 a mask of 2.4 million entries a sequence, and kernels that fill the
card.
"""
KEEP_BYTES = 1 << 27
"""Attention weights of a layer that are kept for the backward pass; beyond, they are computed again there."""


def attention_mask(length: int, window: int | None, document_ids: Tensor | None, device: torch.device) -> Tensor | None:
    """Who may look at whom: bool [1 or B, 1, T, T], True where allowed; None when plain causality is all there is.

    For a CPU in other types than float32 (tests) and under torch.compile: short contexts.
    """
    windowed = window is not None and window < length
    if not windowed and document_ids is None:
        return None
    every = slice(0, length)
    return _allowed(torch.arange(length, device=device), every, every, window if windowed else None, document_ids)


def _allowed(position: Tensor, queries: slice, keys: slice, window: int | None, document_ids: Tensor | None) -> Tensor:
    """Which keys some queries may look at: bool [1 or B, 1, queries, keys]. position: 0, 1, ... T - 1."""
    distance = position[queries, None] - position[None, keys]
    allowed = (distance >= 0)[None, None]
    if window is not None:
        allowed = allowed & (distance < window)
    if document_ids is not None:
        allowed = allowed & (document_ids[:, None, queries, None] == document_ids[:, None, None, keys])
    return allowed


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    document_ids: Tensor | None,
    dropout: float,
    size: int = QUERIES,
) -> Tensor:
    """Attention by scaled_dot_product_attention over blocks of `size` queries: the mask of one block exists, never a
    square.

    For a GPU's dropout, which FlexAttention has not. query [B, H, T, E], key and value [B, K, T, E], rotated -> [B, H,
    T, E].
    """
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))  # the memory-efficient kernel knows no groups
    position, out = torch.arange(length, device=query.device), []
    for start in range(0, length, size):
        stop, low = min(start + size, length), 0 if window is None else max(0, start - window + 1)
        allowed = _allowed(position, slice(start, stop), slice(low, stop), window, document_ids)
        one = query[:, :, start:stop], key[:, :, low:stop], value[:, :, low:stop]
        out.append(F.scaled_dot_product_attention(*one, attn_mask=allowed, dropout_p=dropout))
    return torch.cat(out, 2)


@dataclass(frozen=True)
class Block:
    """Queries start..stop look at keys low..stop; `offset` counts the weights of one head in the blocks before."""

    start: int
    stop: int
    low: int
    offset: int

    @property
    def size(self) -> int:
        """Attention weights of one head."""
        return (self.stop - self.start) * (self.stop - self.low)


def blocks(length: int, window: int | None) -> list[Block]:
    """The blocks of a sequence."""
    out: list[Block] = []
    offset = 0
    step = length if length <= 2 * BLOCK else BLOCK
    for start in range(0, length, step):
        low = 0 if window is None else max(0, start - window + 1)
        out.append(Block(start, min(start + step, length), low, offset))
        offset += out[-1].size
    return out


class AdditiveBlockMask:
    """What is added to a block's scores: minus infinity where a query may not see a key. Made once for all layers."""

    def __init__(self, length: int, window: int | None, document_ids: Tensor | None) -> None:
        self.blocks = blocks(length, window)
        self.weights = sum(block.size for block in self.blocks)
        self._window = window if window is not None and window < length else None
        self._documents = document_ids
        self._hidden: dict[Block, tuple[Tensor, int]] = {}

    def add_to(self, scores: Tensor, block: Block) -> None:
        """Set the scores [B, heads, queries, keys] that are not allowed to minus infinity."""
        if block not in self._hidden:
            self._hidden[block] = self._make(block)
        hidden, first = self._hidden[block]
        scores[..., first:].add_(hidden)  # ten times faster than a broadcast masked_fill_

    def _make(self, block: Block) -> tuple[Tensor, int]:
        """0 or minus infinity [1 or B, 1, queries, keys from `first` on], and `first`: before it all is visible."""
        plain = self._window is None and self._documents is None
        first = block.start - block.low if plain else 0
        query = torch.arange(block.start, block.stop)[:, None]
        key = torch.arange(block.low + first, block.stop)[None, :]
        hidden = key > query
        if self._window is not None:
            hidden |= query - key >= self._window
        hidden = hidden[None]
        if self._documents is not None:
            documents = self._documents
            hidden = hidden | (
                documents[:, block.start : block.stop, None] != documents[:, None, block.low : block.stop]
            )
        return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None], first


@dataclass(frozen=True)
class WeightDropout:
    """Dropout of attention weights, for this process's heads."""

    keep_masks: Callable[[], list[Tensor]]
    """Makes for each block 1.0 where a weight stays and 0.0 where it is dropped, [B, heads x block.size] over all heads
    of the model: new tensors each time it is called, but equal ones.
    """
    probability: float
    """Of being dropped."""
    first_head: int = 0
    """Where this process's heads begin among them."""


class _BlockAttention(Function):
    """With w the weights and u those that dropout leaves of them, the gradient of the scores is u x inner - w x total.

    inner: of each weight, total: of a query's output, summed over its width; both from the gradient of the output. So
    the mask itself is not needed again, and u is written over it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        angles: tuple[Tensor, Tensor],
        block_mask: AdditiveBlockMask,
        dropout: WeightDropout | None,
    ) -> Tensor:
        cos, sin = angles
        batch, length, heads, width = query.shape
        groups, scale = key.shape[2], width**-0.5
        queries = _turned(query.transpose(1, 2), cos * scale, sin * scale).view(batch, groups, -1, length, width)
        keys = _turned(key.transpose(1, 2), cos, sin).flatten(0, 1)
        values = value.transpose(1, 2).reshape(batch * groups, length, width)
        keep = queries.element_size() * batch * heads * block_mask.weights <= KEEP_BYTES
        saved: list[Tensor] = []
        out, masks = torch.empty_like(query), dropout.keep_masks() if dropout else None
        for number, block in enumerate(block_mask.blocks):
            weights = _weights(queries, keys, block, block_mask)
            used = weights
            if dropout and masks:
                used = _drop(weights, masks[number], block, dropout.first_head)
            if keep:
                saved += [weights, used] if dropout else [weights]
            part = torch.bmm(used, values[:, block.low : block.stop])
            _of_tokens(out, block, groups).copy_(part.view(batch, groups, heads // groups, -1, width))
        if dropout:
            out.mul_(1.0 / (1.0 - dropout.probability))
        ctx.save_for_backward(queries, keys, values, cos, sin, out, *saved)
        ctx.block_mask, ctx.dropout = block_mask, dropout
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, cos, sin, out, *saved = ctx.saved_tensors
        batch, groups, share, length, width = queries.shape
        into_queries, into_keys, into_values = (
            torch.empty_like(queries),
            torch.zeros_like(keys),
            torch.zeros_like(values),
        )
        dropout: WeightDropout | None = ctx.dropout
        gradient = gradients[0] * (1.0 / (1.0 - dropout.probability)) if dropout else gradients[0]
        totals = (out * gradients[0]).sum(-1, keepdim=True)
        masks = dropout.keep_masks() if dropout and not saved else None
        each = 2 if dropout else 1
        for number, block in enumerate(ctx.block_mask.blocks):
            if saved:
                weights, used = saved[number * each], saved[number * each + each - 1]
            else:
                weights = used = _weights(queries, keys, block, ctx.block_mask)
                if dropout and masks:
                    used = _drop(weights, masks[number], block, dropout.first_head)
            seen = slice(block.low, block.stop)
            outer = _of_tokens(gradient, block, groups).reshape(batch * groups, -1, width)
            total = _of_tokens(totals, block, groups).reshape(batch * groups, -1, 1)
            into_values[:, seen] += torch.bmm(used.mT, outer)  # baddbmm_ on a slice goes matrix by matrix
            scores = torch.bmm(outer, values[:, seen].mT).mul_(used).addcmul_(weights, total, value=-1)
            into_keys[:, seen] += torch.bmm(scores.mT, _rows(queries, block))
            part = torch.bmm(scores, keys[:, seen])
            into_queries[:, :, :, block.start : block.stop] = part.view(batch, groups, share, -1, width)
        scale = width**-0.5
        query = _turned(into_queries.view(batch, -1, length, width), cos * scale, -sin * scale).transpose(1, 2)
        key = _turned(into_keys.view(batch, groups, length, width), cos, -sin).transpose(1, 2)
        value = into_values.view(batch, groups, length, width).transpose(1, 2)
        return query, key, value, None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, T, E] rotated by angles given for half the width [T, E / 2]: a new tensor, contiguous."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def _rows(queries: Tensor, block: Block) -> Tensor:
    """The queries of a block [B K, G q, E], of [B, K, G, T, E]."""
    return queries[:, :, :, block.start : block.stop].flatten(0, 1).flatten(1, 2)


def _weights(queries: Tensor, keys: Tensor, block: Block, block_mask: AdditiveBlockMask) -> Tensor:
    """Attention weights of a block [B K, G q, keys]."""
    scores = torch.bmm(_rows(queries, block), keys[:, block.low : block.stop].mT)
    block_mask.add_to(scores.view(queries.shape[0], -1, block.stop - block.start, block.stop - block.low), block)
    return torch.softmax(scores, -1)


def _drop(weights: Tensor, mask: Tensor, block: Block, first_head: int) -> Tensor:
    """What dropout leaves of the weights of a block [B K, G q, keys]. mask: [B, all heads x weights], written over."""
    heads = weights.numel() // (len(mask) * block.size)
    kept = mask.unflatten(1, (-1, block.size))[:, first_head : first_head + heads]
    return kept.mul_(weights.view(kept.shape)).reshape(weights.shape)


def _of_tokens(x: Tensor, block: Block, groups: int) -> Tensor:
    """The tokens of a block in x [B, T, H, E], as [B, K, G, q, E]: a view."""
    return x[:, block.start : block.stop].unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    angles: tuple[Tensor, Tensor],
    block_mask: AdditiveBlockMask,
    dropout: WeightDropout | None = None,
) -> Tensor:
    """Attention with rotary positions: query [B, T, H, E], key and value [B, T, K, E], not rotated yet -> [B, T, H, E].

    angles: cosines and sines, each [T, E / 2].
    """
    return _BlockAttention.apply(query, key, value, angles, block_mask, dropout)  # type: ignore[no-any-return]
