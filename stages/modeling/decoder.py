"""The decoder: pre-norm RMSNorm, RoPE, grouped-query sliding-window attention, SwiGLU (paper 3.1).

Parameter names are those of transformers' MistralForCausalLM, so that weights travel both ways unchanged; logits are
equal to its logits by test. Shapes: B batch, T tokens, D width, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.modeling.shape import ModelShape

INIT_STD = 0.02
"""Of all matrices; those that write into the residual stream get 0.02 / sqrt(2 x layers), so that the variance of the
stream does not grow with depth (GPT-2; the paper's 3.1 asks for an initialization against vanishing and exploding
gradients and gives no formula)."""
LOSS_CHUNK = 4096
"""Tokens whose logits exist at one time in the loss: at 32,000 entries and fp32 half a gigabyte."""


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding for positions [..., T]: each [..., T, E], float32."""
    inverse = theta ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions[..., None].float() * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to x [B, heads, T, E]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attention_mask(length: int, window: int | None, document_ids: Tensor | None, device: torch.device) -> Tensor | None:
    """Who may look at whom: bool [1 or B, 1, T, T], True where allowed; None when plain causality is all there is."""
    windowed = window is not None and window < length
    if not windowed and document_ids is None:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    allowed = (distance >= 0) & (distance < window) if windowed and window is not None else distance >= 0
    allowed = allowed[None, None]
    if document_ids is not None:
        allowed = allowed & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return allowed


class RMSNorm(nn.Module):
    """Root-mean-square normalization with a learned scale, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K key-value heads."""

    def __init__(self, shape: ModelShape, dropout: float) -> None:
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        batch, length, _ = x.shape
        query, key, value = (
            projection(x).view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU, with dropout on what it adds to the stream."""

    def __init__(self, shape: ModelShape, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        out = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return F.dropout(out, self.dropout, self.training)


class Block(nn.Module):
    """One decoder block; both sub-layers are normalized before, not after."""

    def __init__(self, shape: ModelShape, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(shape, dropout)
        self.mlp = FeedForward(shape, dropout)
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, shape: ModelShape, vocab_size: int, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)


class MoxinLM(nn.Module):
    """The language model. `recompute` keeps only each block's input for the backward pass (activation checkpointing)."""

    def __init__(self, shape: ModelShape, vocab_size: int, dropout: float = 0.0, recompute: bool = False) -> None:
        super().__init__()
        self.shape, self.vocab_size, self.recompute = shape, vocab_size, recompute
        self.model = Backbone(shape, vocab_size, dropout)
        self.lm_head = nn.Linear(shape.hidden, vocab_size, bias=False)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh weights from a generator, in parameter order."""
        residual = INIT_STD / math.sqrt(2 * self.shape.layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    std = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD
                    parameter.normal_(0.0, std, generator=generator)

    def hidden_states(self, ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Final hidden states [B, T, D] of token ids [B, T].

        document_ids [B, T]: attention stays within a document. Positions run on through the window: rotary attention
        depends on differences of positions alone, so starting each document at 0 would change nothing.
        """
        length = ids.shape[1]
        x = self.model.embed_tokens(ids)
        cos, sin = rotary(torch.arange(length, device=ids.device), self.shape.head_dim, self.shape.rope_theta)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        mask = attention_mask(length, self.shape.window, document_ids, ids.device)
        for block in self.model.layers:
            if self.recompute and self.training:
                x = checkpoint(block, x, cos, sin, mask, use_reentrant=False)
            else:
                x = block(x, cos, sin, mask)
        return self.model.norm(x)

    def forward(self, ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of token ids [B, T]."""
        return self.lm_head(self.hidden_states(ids, document_ids))

    def loss_sum(self, ids: Tensor, document_ids: Tensor | None = None) -> tuple[Tensor, int]:
        """Summed next-token cross-entropy of windows [B, T], and the number of predicted tokens.

        Labels are the ids shifted by one inside the window. With document_ids, the first token of a document is not
        predicted: nothing that it may look at tells of it.
        """
        hidden = self.hidden_states(ids, document_ids)[:, :-1].reshape(-1, self.shape.hidden)
        labels = ids[:, 1:].reshape(-1)
        if document_ids is not None:
            same = (document_ids[:, 1:] == document_ids[:, :-1]).reshape(-1)
            labels = labels.masked_fill(~same, -100)
        return chunked_cross_entropy(hidden, self.lm_head.weight, labels), int((labels != -100).sum())


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int = LOSS_CHUNK) -> Tensor:
    """Summed cross-entropy of hidden [N, D] against weight [V, D] and labels [N] (-100: left out).

    Above `chunk` tokens the logits of one chunk exist at a time, forward and backward: memory O(chunk x V).
    """

    def part(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(states, weight).float(), targets, ignore_index=-100, reduction="sum")

    if len(hidden) <= chunk:
        return part(hidden, labels)
    total = hidden.new_zeros((), dtype=torch.float32)
    for states, targets in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        total = total + checkpoint(part, states, targets, use_reentrant=False)
    return total
