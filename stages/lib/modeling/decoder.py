"""The decoder: pre-norm RMSNorm, RoPE, grouped-query sliding-window attention, SwiGLU (paper 3.1).

Parameter names are those of transformers' MistralForCausalLM, so that weights travel both ways unchanged; logits are
equal to its logits by test. Shapes: B batch, T tokens, D width, H query heads, K key-value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from stages.lib.modeling import flex
from stages.lib.modeling.attention import (
    AdditiveBlockMask,
    WeightDropout,
    attend_in_blocks,
    attention_mask,
    block_attention,
)
from stages.lib.modeling.kernels import chunked_cross_entropy, fused, rms_norm, swiglu
from stages.lib.modeling.recompute import Policy, through
from stages.lib.modeling.sequence_dropout import ATTENTION, FEED_FORWARD, SequenceDropout
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import FreshWeights, materialize

IGNORED = -100
"""The label of a token that is not predicted (PyTorch's own default)."""


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


def on_gpu(x: Tensor) -> bool:
    """Whether x lies on a GPU."""
    return x.device.type == "cuda"


class RMSNorm(nn.Module):
    """Root-mean-square normalization with a learned scale, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return rms_norm(x, local(self.weight), self.eps)


@dataclass(frozen=True)
class AttentionContext:
    """What every block of one forward pass is given: angles, who sees whom, and what is dropped."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None = None
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """How a GPU's rotated queries, keys and values [B, heads, T, E] make the output where causality is not all."""
    block_mask: AdditiveBlockMask | None = None
    dropout: SequenceDropout | None = None
    group: DeviceMesh | None = None
    """Processes that share each block's heads and feed-forward (tensor parallel); between blocks they share the tokens.
    """

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return self.group.get_local_rank() if self.group else 0

    def gather(self, x: Tensor) -> Tensor:
        """All tokens [B, T, D] of this process's [B, T / processes, D]."""
        if self.group is None:
            return x
        shared = DTensor.from_local(x, self.group, [Shard(1)])
        return shared.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])

    def scatter(self, x: Tensor) -> Tensor:
        """This process's tokens of the sum over processes of x [B, T, D]."""
        if self.group is None:
            return x
        return DTensor.from_local(x, self.group, [Partial()]).redistribute(placements=[Shard(1)]).to_local()


def local(weight: Tensor) -> Tensor:
    """A weight, or this process's part of it under tensor parallelism. Gradients of what all hold are added up."""
    if not isinstance(weight, DTensor):
        return weight
    return weight.to_local(grad_placements=[Partial() if isinstance(p, Replicate) else p for p in weight.placements])


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K key-value heads."""

    def __init__(self, shape: ModelShape, dropout: float, layer: int = 0) -> None:
        super().__init__()
        self.shape, self.dropout, self.layer = shape, dropout, layer
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        query, key, value = (
            F.linear(x, local(p.weight)).unflatten(-1, (-1, self.shape.head_dim))
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = (
            self._blocks(query, key, value, context) if context.block_mask else self._whole(query, key, value, context)
        )
        return F.linear(out.flatten(2), local(self.o_proj.weight))

    def _blocks(self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        assert context.block_mask is not None
        half, dropout = self.shape.head_dim // 2, None
        if self.dropout and context.dropout is not None:
            counts = [self.shape.heads * block.size for block in context.block_mask.blocks]
            keep_masks = partial(context.dropout.keep_masks, self.dropout, self.layer, ATTENTION, counts)
            dropout = WeightDropout(keep_masks, self.dropout, context.rank * query.shape[2])
        angles = context.cos[:, :half], context.sin[:, :half]
        return block_attention(query, key, value, angles, context.block_mask, dropout)

    def _whole(self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        # Under autocast the angles are float32 and the projections are not: all three must have one type.
        query, key = (rotate(x, context.cos, context.sin).to(value.dtype) for x in (query, key))
        if context.attend is not None:
            return context.attend(query, key, value).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=context.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=context.mask is None,
            enable_gqa=self.shape.heads != self.shape.kv_heads,
        )
        return out.transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU, with dropout on what it adds to the stream."""

    def __init__(self, shape: ModelShape, dropout: float, layer: int = 0) -> None:
        super().__init__()
        self.dropout, self.layer = dropout, layer
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def transform(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D] without dropout; under tensor parallelism a part of the sum."""
        inner = swiglu(F.linear(x, local(self.gate_proj.weight)), F.linear(x, local(self.up_proj.weight)))
        return F.linear(inner, local(self.down_proj.weight))

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        out = context.scatter(self.transform(x))
        if context.dropout is None or not self.dropout:
            return F.dropout(out, self.dropout, self.training)
        kept = context.dropout.keep_mask(self.dropout, self.layer, FEED_FORWARD, x[0].numel()).view(x.shape)
        kept = kept.narrow(1, context.rank * out.shape[1], out.shape[1])
        return out * (kept * (1.0 / (1.0 - self.dropout)))


class Block(nn.Module):
    """One decoder block; both sub-layers are normalized before, not after. recompute: its activation checkpointing."""

    def __init__(self, shape: ModelShape, dropout: float, layer: int = 0, recompute: Policy = "none") -> None:
        super().__init__()
        self.recompute: Policy = recompute
        self.self_attn = Attention(shape, dropout, layer)
        self.mlp = FeedForward(shape, dropout, layer)
        self.input_layernorm = RMSNorm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.norm_eps)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return through(self._sublayers, self.recompute, x, context)

    def _sublayers(self, x: Tensor, context: AttentionContext) -> Tensor:
        x = x + context.scatter(self.self_attn(context.gather(self.input_layernorm(x)), context))
        return x + self.mlp(context.gather(self.post_attention_layernorm(x)), context)


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, shape: ModelShape, vocab_size: int, dropout: float, recompute: Policy) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, dropout, layer, recompute) for layer in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)


class MoxinLM(nn.Module):
    """The language model. recompute: activation checkpointing of each block."""

    def __init__(self, shape: ModelShape, vocab_size: int, dropout: float = 0.0, recompute: Policy = "none") -> None:
        super().__init__()
        self.shape, self.vocab_size, self.dropout = shape, vocab_size, dropout
        self.tensor_group: DeviceMesh | None = None
        self.compiled = False
        self.flexible = True
        """Whether a GPU's documents and windows go through FlexAttention, which needs a C compiler; else block by
        block, as with dropout.
        """
        self.model = Backbone(shape, vocab_size, dropout, recompute)
        self.lm_head = nn.Linear(shape.hidden, vocab_size, bias=False)

    def initialize(self, seed: int) -> None:
        """Draw fresh weights, those that a model spread over processes begins with."""
        materialize(self, self.lm_head.weight.device, FreshWeights(seed, self.shape.layers))

    def compile_blocks(self) -> None:
        """Let torch.compile make each block's kernels, once for all of them. Before FSDP2 shards them: its hooks stay
        outside.

        On a CPU dropout is then PyTorch's own: other masks than without, as on a GPU.
        """
        self.compiled = True
        for block in self.model.layers:
            block.forward = torch.compile(block.forward)

    def attention_context(
        self, x: Tensor, length: int, document_ids: Tensor | None, dropout: SequenceDropout | None
    ) -> AttentionContext:
        """Angles, block_mask and dropout of a forward pass over `length` tokens; x: their embeddings."""
        cos, sin = rotary(torch.arange(length, device=x.device), self.shape.head_dim, self.shape.rope_theta)
        if self.compiled or not fused(x):
            cos, sin = cos.to(x.dtype), sin.to(x.dtype)
            if on_gpu(x):
                return AttentionContext(
                    cos, sin, attend=self._attend(length, document_ids, x.device), group=self.tensor_group
                )
            mask = attention_mask(length, self.shape.window, document_ids, x.device)
            return AttentionContext(cos, sin, mask, group=self.tensor_group)
        if not self.training:
            dropout = None
        elif self.dropout and dropout is None:
            dropout = SequenceDropout.random(len(x))
        block_mask = AdditiveBlockMask(length, self.shape.window, document_ids)
        return AttentionContext(cos, sin, block_mask=block_mask, dropout=dropout, group=self.tensor_group)

    def _attend(
        self, length: int, document_ids: Tensor | None, device: torch.device
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """A GPU's attention: None where plain causality is all, which flash attention does; never a mask of the
        context's square.
        """
        window = self.shape.window if self.shape.window is not None and self.shape.window < length else None
        if window is None and document_ids is None:
            return None
        dropout = self.dropout if self.training else 0.0
        if dropout or not self.flexible:
            return partial(attend_in_blocks, window=window, document_ids=document_ids, dropout=dropout)
        return partial(flex.attend, mask=flex.block_mask(length, window, document_ids, device))

    def _part(self, tokens: Tensor) -> Tensor:
        """This process's part of tokens [B, T, ...] between blocks: all, or its share under tensor parallelism."""
        if self.tensor_group is None:
            return tokens
        return tokens.chunk(self.tensor_group.size(), 1)[self.tensor_group.get_local_rank()]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [B, T, D] of token ids [B, T]; under tensor parallelism those of this process's tokens."""
        return F.embedding(self._part(ids), local(self.model.embed_tokens.weight))

    def hidden_states(
        self, ids: Tensor, document_ids: Tensor | None = None, dropout: SequenceDropout | None = None
    ) -> Tensor:
        """Final hidden states [B, T, D] of token ids [B, T]; under tensor parallelism those of this process's tokens.

        document_ids [B, T]: attention stays within a document. Positions run on through the window: rotary attention
        depends on differences of positions alone, so starting each document at 0 would change nothing.
        dropout: which elements dropout zeroes, on a CPU in training; drawn from PyTorch's generator when not given.
        """
        x = self.embed(ids)
        context = self.attention_context(x, ids.shape[1], document_ids, dropout)
        for block in self.model.layers:
            x = block(x, context)
        return self.model.norm(x)

    def forward(self, ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of token ids [B, T]."""
        return F.linear(self.hidden_states(ids, document_ids), local(self.lm_head.weight))

    def loss_sum(
        self, ids: Tensor, document_ids: Tensor | None = None, dropout: SequenceDropout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Summed next-token cross-entropy of windows [B, T], and the number of predicted tokens.

        Labels are the ids shifted by one inside the window. With document_ids, the first token of a document is not
        predicted: nothing that it may look at tells of it.
        """
        return self.loss_of(self.hidden_states(ids, document_ids, dropout), ids, document_ids)

    def loss_of(self, hidden: Tensor, ids: Tensor, document_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`loss_sum` from the final hidden states of the windows, as `hidden_states` gives them."""
        labels = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
        if document_ids is not None:
            labels = labels.masked_fill(F.pad(document_ids[:, 1:] != document_ids[:, :-1], (0, 1)), IGNORED)
        labels = self._part(labels).flatten()
        loss = chunked_cross_entropy(hidden.flatten(0, 1), local(self.lm_head.weight), labels)
        return loss, (labels != IGNORED).sum()  # a tensor: reading it would make a GPU wait, and break a compiled graph
