"""The element-wise parts of the decoder as fused autograd functions for the CPU, and the loss without full logits.

Matrix products run at 95 % of the processor's peak by themselves; what costs a training step its speed is everything
between them: PyTorch's eager autograd makes 15 passes over memory for an RMSNorm and keeps what it could recompute. On
a GPU PyTorch's own kernels (or torch.compile) do this, and these functions step aside.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

LOSS_CHUNK = 4096
"""Tokens whose logits exist at one time in the loss on a GPU: at 32,000 entries and float32 half a gigabyte."""
LOSS_CHUNK_CPU = 512
"""On a CPU: large enough for the gradient of the vocabulary matrix to be a full-speed product, small enough for its
cache.
"""
SMALLEST_CHANCE = 1e-30
"""Below it float32 (normal from 1.2e-38 on) no longer tells a probability well."""


def fused(x: Tensor) -> bool:
    """Whether the functions here apply: float32 on a CPU, not traced by torch.compile, not a distributed tensor."""
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return plain and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        gradient, width = gradients[0], x.shape[-1]
        normal = x * inverse
        product = gradient * normal
        mean = torch.matmul(product, weight).div_(width).unsqueeze(-1)
        into_x = (gradient * weight).addcmul_(normal, mean, value=-1).mul_(inverse)
        return into_x, product.view(-1, width).sum(0), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension, computed in float32. x [..., D], weight [D]."""
    if fused(x) and fused(weight):
        return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return]
    return weight * F.rms_norm(x.float(), (x.shape[-1],), eps=eps).to(x.dtype)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        into_up = F.silu(gate).mul_(gradients[0])
        return torch.ops.aten.silu_backward(gradients[0] * up, gate), into_up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Keeps its two inputs for the backward pass, and nothing else."""
    return _SwiGLU.apply(gate, up) if fused(gate) else F.silu(gate) * up  # type: ignore[no-any-return]


class _LinearCrossEntropy(Function):
    """The gradients are made in the forward pass, chunk by chunk, while the logits are in the cache.

    The gradient of the logits is their softmax minus 1 at the label. Subtracting is moved behind the products, where it
    touches D and not V numbers a token. The loss is -log of the label's probability; where that is too small for a
    float32, it is computed from the logits.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        into_hidden, into_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight))
        for start in range(0, len(hidden), chunk):
            states, targets = hidden[start : start + chunk], labels[start : start + chunk]
            kept = (targets >= 0).to(hidden.dtype)[:, None]
            classes = targets.clamp(min=0)
            logits = torch.mm(states, weight.T, out=buffer[: len(states)])
            chances = torch.softmax(logits, -1, out=logits)
            chosen = chances.gather(1, classes[:, None])
            losses = -chosen.log()
            if (chosen < SMALLEST_CHANCE).any():
                rows = torch.nonzero(chosen[:, 0] < SMALLEST_CHANCE)[:, 0]
                losses[rows, 0] = F.cross_entropy(states[rows] @ weight.T, classes[rows], reduction="none")
            total += (losses * kept).sum()
            part = torch.mm(chances, weight, out=into_hidden[start : start + chunk])
            part.sub_(weight[classes]).mul_(kept)
            rest = states * kept
            into_weight.addmm_(chances.T, rest)
            into_weight.index_add_(0, classes, rest, alpha=-1)
        ctx.save_for_backward(into_hidden, into_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        into_hidden, into_weight = ctx.saved_tensors
        return into_hidden * gradients[0], into_weight * gradients[0], None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """Summed cross-entropy of hidden [N, D] against weight [V, D] and labels [N] (-100: left out).

    The logits of one chunk exist at a time, forward and backward: memory O(chunk x V).
    """
    if fused(hidden) and fused(weight) and torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, labels, chunk or LOSS_CHUNK_CPU)  # type: ignore[no-any-return]

    def part(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(states, weight).float(), targets, ignore_index=-100, reduction="sum")

    chunk = chunk or LOSS_CHUNK
    if len(hidden) <= chunk:
        return part(hidden, labels)
    total = hidden.new_zeros((), dtype=torch.float32)
    for states, targets in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        total = total + checkpoint(part, states, targets, use_reentrant=False)
    return total
