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


def held_block(shape: ModelShape, tensor: int) -> float:
    """Parameters of one block that each of `tensor` processes holds which share its matrices; its norms are whole."""
    return (block_parameters(shape) - 2 * shape.hidden) / tensor + 2 * shape.hidden


def copied_parameters(shape: ModelShape, vocabulary: int, tensor: int = 1) -> float:
    """That autocast copies to half precision: all matrices but the embedding."""
    return shape.layers * (held_block(shape, tensor) - 2 * shape.hidden) + vocabulary * shape.hidden


def token_bytes(
    shape: ModelShape, policy: Literal["none", "selective", "full"], autocast: bool, tensor: int = 1
) -> float:
    """What a block keeps of one token.

    none: the inputs of its two norms (in float32 there), of the norms' weights, of the seven matrix products, of
    attention and SwiGLU. Under autocast each product of the five that share a norm's output has a copy of its own.
    selective: the results of products and attention. full: its input.

    tensor: processes that share each matrix, and the tokens between blocks. What a product is given, and its result
    before it is added up, has all tokens; a block's input and its norms have a share of them.
    """
    hidden, inner = shape.hidden, shape.intermediate / tensor
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    stream = FULL if autocast else HALF
    attention = (HALF * (2 * queries + 2 * keys) + FULL * shape.heads) / tensor
    if policy == "full":
        return stream * hidden / tensor
    if policy == "selective":
        return stream * hidden / tensor + attention + HALF * (2 * hidden + 2 * inner)
    norms = (2 * FULL + 2 * FULL if autocast else 2 * (FULL + HALF)) * hidden / tensor
    given = (5 if autocast else 2) * HALF * hidden
    return norms + given + attention + 4 * HALF * inner


def recomputed_bytes(
    shape: ModelShape, policy: Literal["none", "selective", "full"], autocast: bool, tensor: int = 1
) -> float:
    """What a block's backward pass computes again of one token: what `none` keeps, but for what is there. selective:
    rotated queries and keys are made again, other results of products and attention are not.
    """
    if policy == "none":
        return 0.0
    again = token_bytes(shape, "none", autocast, tensor) - (FULL * shape.hidden / tensor if autocast else 0)
    if policy == "full":
        return again
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    kept = HALF * (queries + keys + 2 * shape.intermediate) + FULL * shape.heads
    return again - kept / tensor


@dataclass(frozen=True)
class Share:
    """What a process has of the model. tensor: processes that share each matrix; layers: blocks that are here; head:
    whether the final norm and the loss are: a stage of a pipeline has a part.
    """

    layers: int
    tensor: int = 1
    head: bool = True


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
    """Of the whole model. chunk: tokens whose logits exist at one time (None: all). logits: bytes of one logit in the
    loss.
    """
    loss = float(logits * (tokens if chunk is None else min(chunk, tokens)) * vocabulary)
    return share_activations(shape, tokens, policy, autocast, loss, Share(shape.layers))


def share_activations(
    shape: ModelShape,
    tokens: float,
    policy: Literal["none", "selective", "full"],
    autocast: bool,
    loss: float,
    share: Share,
) -> Activations:
    """Of a process's share of the model. loss: bytes that the logits take, where they are here."""
    hidden, tensor = shape.hidden, share.tensor
    last = (2 * FULL + HALF if autocast else FULL + 2 * HALF) * hidden * tokens / tensor
    again = recomputed_bytes(shape, policy, autocast, tensor)
    moving = 2 * HALF * shape.intermediate / tensor + FULL * hidden  # gradients within the SwiGLU, and of the stream
    return Activations(
        kept=share.layers * token_bytes(shape, policy, autocast, tensor) * tokens
        + (last if share.head else 0.0),  # the final norm, and what the vocabulary's product is given
        block=(again + moving) * tokens,
        loss=loss if share.head else 0.0,
    )


def with_copies(activations: Activations, copies: float, policy: str) -> float:
    """Most bytes of a pass with autocast's half-precision copies of the weights: there until the loss is made; only
    'none' keeps them longer.

    In the forward pass a logit has 10 bytes: in half precision, in float32, and its logarithm of the softmax.
    """
    if policy == "none":
        return activations.most + copies
    return max(activations.most, activations.kept + activations.loss * 10 / LOGITS + copies)
