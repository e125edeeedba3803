"""What a training step of a Moxin-shaped decoder holds in a GPU's memory, by formula. Light, for plans; tested against
steps that ran.

N tokens are in a forward pass, padding included; H hidden, Q query width (heads x head width), K key-value width, I
inner width, V vocabulary. Two ways to half precision: `autocast` keeps float32 weights and a float32 stream, and casts
what goes into each matrix product; else weights and stream are in half precision themselves. The same numbers hold for
`MoxinLM` and for transformers' Mistral, with a flash attention kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.lib.modeling.shape import ModelShape

HALF, FULL = 2, 4
"""Bytes of a value."""
LOGITS = 12
"""Bytes of a logit while its loss is made: its logarithm of the softmax, the gradient of that and the product on the
way, each float32.
"""


@dataclass(frozen=True)
class Activations:
    """Bytes of one forward and backward pass."""

    kept: float
    """For the backward pass, from the forward pass on."""
    block: float
    """Most that the backward pass of one block has beside: what it computed again, and gradients on their way."""
    loss: float
    """Most that the loss has beside: logits."""

    @property
    def most(self) -> float:
        """At one time: the loss is done when the blocks' backward passes begin."""
        return self.kept + max(self.block, self.loss)


def block_parameters(shape: ModelShape) -> int:
    """Of one block."""
    return (shape.parameters(0) - shape.hidden) // shape.layers


def copied_parameters(shape: ModelShape, vocabulary: int) -> int:
    """That autocast copies to half precision: all matrices but the embedding."""
    return shape.parameters(vocabulary) - vocabulary * shape.hidden - (2 * shape.layers + 1) * shape.hidden


def token_bytes(shape: ModelShape, policy: Literal["none", "selective", "full"], autocast: bool) -> int:
    """What a block keeps of one token.

    none: the inputs of its two norms (in float32 there), of the norms' weights, of the seven matrix products, of
    attention and SwiGLU. Under autocast each product of the five that share a norm's output has a copy of its own.
    selective: the results of products and attention. full: its input.
    """
    hidden, inner = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    stream = FULL if autocast else HALF
    attention = HALF * (2 * queries + 2 * keys) + FULL * shape.heads
    if policy == "full":
        return stream * hidden
    if policy == "selective":
        return stream * hidden + attention + HALF * (2 * hidden + 2 * inner)
    norms = (2 * FULL + 2 * FULL + 5 * HALF) * hidden if autocast else 2 * (FULL + HALF + HALF) * hidden
    return norms + attention + 4 * HALF * inner


def activations(
    shape: ModelShape,
    vocabulary: int,
    tokens: float,
    policy: Literal["none", "selective", "full"],
    *,
    autocast: bool,
    chunk: int | None = None,
    logits: int = LOGITS,
) -> Activations:
    """chunk: tokens whose logits exist at one time (None: all). logits: bytes of one logit in the loss."""
    hidden = shape.hidden
    last = (
        (2 * FULL + HALF if autocast else FULL + 2 * HALF) * hidden * tokens
    )  # the final norm, and what the vocabulary's product is given
    again = 0 if policy == "none" else token_bytes(shape, "none", autocast)
    moving = 2 * HALF * shape.intermediate + FULL * hidden  # gradients within the SwiGLU, and of the stream
    counted = tokens if chunk is None else min(chunk, tokens)
    return Activations(
        kept=shape.layers * token_bytes(shape, policy, autocast) * tokens + last,
        block=(again + moving) * tokens,
        loss=float(logits * counted * vocabulary),
    )


def with_copies(found: Activations, copies: float, policy: str) -> float:
    """Most bytes of a pass with autocast's half-precision copies of the weights: there until the loss is made; only
    'none' keeps them longer.

    In the forward pass a logit has 10 bytes: in half precision, in float32, and its logarithm of the softmax.
    """
    if policy == "none":
        return found.most + copies
    return max(found.most, found.kept + found.loss * 10 / LOGITS + copies)
