"""Generation with a rolling-buffer cache: W slots a layer, whatever the length (paper 3.2).

Keys and values of position i lie in slot i mod W. A token sees the last W positions, so what is overwritten is what no
later
token may see: logits are those of the whole sequence (test), with 32,768 positions in 4,096 slots, an eighth of the
memory.

    ids = generate(model, [[1, 17, 5], [1, 9]], new_tokens=64, eos_id=2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.lib.modeling.decoder import Attention, Block, MoxinLM, rotary, rotate

CHUNK = 512
"""Tokens of a prompt that are read at one time: the scores of a chunk are CHUNK x (W + CHUNK) a head, not T x T."""


class RollingCache:
    """Keys and values of the last `slots` positions of every layer, for a batch of sequences that end together.

    starts [B]: the position at which each sequence begins; before it there is padding, which nobody sees.
    """

    def __init__(self, model: MoxinLM, starts: Tensor, length: int) -> None:
        shape, weight = model.shape, model.lm_head.weight
        self.slots = min(length, shape.window or length)
        size = (shape.layers, len(starts), shape.kv_heads, self.slots, shape.head_dim)
        self.keys = torch.zeros(size, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)  # an empty slot has weight 0, and 0 times what lay there must be 0
        self.starts, self.next = starts.to(weight.device), 0
        self.positions = torch.full((self.slots,), -1, device=weight.device)
        """Which position each slot holds; -1: none yet."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """bool [B, 1, queries, keys] from positions: not after the query, in its window, and no padding."""
        distance = queries[:, None] - keys[None, :]
        seen = (distance >= 0) & (distance < self.slots) & (keys >= 0)
        unpadded = (keys[None, :] >= self.starts[:, None])[:, None] | (distance == 0)[
            None
        ]  # padding sees itself, or it has no number
        return (seen[None] & unpadded)[:, None]


def attend(
    attention: Attention, layer: int, x: Tensor, cos: Tensor, sin: Tensor, cache: RollingCache, now: Tensor
) -> Tensor:
    """Attention of new tokens x [B, C, D] at positions `now` [C] over themselves and what the cache holds; then store
    them.
    """
    width = attention.shape.head_dim
    query, key, value = (
        p(x).unflatten(-1, (-1, width)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    slots, keys, values = now % cache.slots, cache.keys[layer], cache.values[layer]
    if len(now) == 1:
        keys[:, :, slots], values[:, :, slots] = key, value
        positions = cache.positions.clone()
        positions[slots] = now
        mask = cache.visible(now, positions)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
    else:
        held = cache.positions >= 0
        old_keys, old_values = (x[:, :, held] for x in (keys, values))
        mask = cache.visible(now, torch.cat((cache.positions[held], now)))
        both = torch.cat((old_keys, key), 2), torch.cat((old_values, value), 2)
        out = F.scaled_dot_product_attention(query, *both, attn_mask=mask, enable_gqa=True)
        last = slice(max(0, len(now) - cache.slots), None)  # of a chunk longer than the buffer only its end stays
        keys[:, :, slots[last]], values[:, :, slots[last]] = key[:, :, last], value[:, :, last]
    return attention.o_proj(out.transpose(1, 2).flatten(2))


@torch.no_grad()
def advance(model: MoxinLM, ids: Tensor, cache: RollingCache) -> Tensor:
    """Logits [B, V] after the tokens ids [B, C], which follow what the cache has seen."""
    now = torch.arange(cache.next, cache.next + ids.shape[1], device=ids.device)
    x = F.embedding(ids, model.model.embed_tokens.weight)
    cos, sin = (t.to(x.dtype) for t in rotary(now, model.shape.head_dim, model.shape.rope_theta))
    for layer, module in enumerate(model.model.layers):
        block = cast(Block, module)  # a ModuleList forgets the type
        x = x + attend(block.self_attn, layer, block.input_layernorm(x), cos, sin, cache, now)
        x = x + block.mlp.transform(block.post_attention_layernorm(x))
    last = slice(max(0, len(now) - cache.slots), None)
    cache.positions[now[last] % cache.slots] = now[last]
    cache.next += len(now)
    return model.lm_head(model.model.norm(x[:, -1])).float()


def prefill(model: MoxinLM, prompts: Sequence[Sequence[int]], length: int) -> tuple[Tensor, RollingCache]:
    """Read prompts into a cache for `length` positions, padded on the left: logits [B, V] of what follows, and the
    cache.
    """
    longest, device = max(len(p) for p in prompts), model.lm_head.weight.device
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    cache = RollingCache(model, torch.tensor([longest - len(p) for p in prompts]), length)
    logits = torch.empty(0)
    for part in ids.split(CHUNK, dim=1):
        logits = advance(model, part, cache)
    return logits, cache


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """The next ids [B]: the likeliest at temperature 0, else drawn from the smallest set of top_p probability or
    more.
    """
    if temperature == 0:
        return logits.argmax(-1)
    chances, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    outside = chances.cumsum(-1) - chances >= top_p  # what comes before it is enough already
    chances = chances.masked_fill(outside, 0.0)
    return order.gather(-1, torch.multinomial(chances, 1, generator=generator))[:, 0]


def generate(
    model: MoxinLM,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    eos_id: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Continue each prompt (ids, at least one) by up to `new_tokens` ids; eos_id ends it and is not returned.

    The model must be in eval mode. Memory of the cache: min(window, longest prompt + new_tokens) slots.
    """
    if not prompts or not all(prompts):
        raise ValueError("each prompt needs at least one id (the beginning of a text is one)")
    if model.training:
        raise ValueError("call model.eval() first: dropout must not act in generation")
    logits, cache = prefill(model, prompts, max(len(p) for p in prompts) + new_tokens)
    out: list[list[int]] = [[] for _ in prompts]
    going = torch.ones(len(prompts), dtype=torch.bool)
    for number in range(new_tokens):
        ids = choose(logits, temperature, top_p, generator)
        going &= (ids != eos_id).cpu()
        for row in torch.nonzero(going).flatten().tolist():
            out[row].append(int(ids[row]))
        if not going.any() or number == new_tokens - 1:
            break
        logits = advance(model, ids[:, None], cache)
    return out
