"""`stages.lib.modeling.recompute`: no policy changes a gradient, and each keeps less than the one before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.recompute import Policy
from stages.lib.modeling.sequence_dropout import SequenceDropout
from stages.lib.modeling.shape import ModelShape

SHAPE = ModelShape(layers=3, hidden=32, intermediate=96, heads=4, kv_heads=2, head_dim=8, window=150, max_positions=256)
POLICIES: tuple[Policy, ...] = ("none", "selective", "full")


def build(recompute: Policy, dropout: float) -> MoxinLM:
    model = MoxinLM(SHAPE, 97, dropout, recompute)
    model.initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.train()


def ids(batch: int = 2, length: int = 200) -> Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def gradients(model: MoxinLM, **given: Any) -> list[Tensor]:
    torch.manual_seed(3)
    loss, _ = model.loss_sum(ids(), **given)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("policy", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("drawn", [None, SequenceDropout(7, (3, 5))])
def test_no_policy_changes_a_bit_of_a_gradient(
    policy: Policy, dropout: float, documents: bool, drawn: SequenceDropout | None
) -> None:
    """With the run's own dropout, and with one drawn from PyTorch's generator."""
    given: dict[str, Any] = {
        "dropout": drawn,
        "document_ids": torch.tensor([[0] * 70 + [1] * 130] * 2) if documents else None,
    }
    plain, other = gradients(build("none", dropout), **given), gradients(build(policy, dropout), **given)
    assert len(plain) == 1 + 3 * 9 + 3
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("policy", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_nor_with_pytorchs_own_operators(policy: Policy, dropout: float) -> None:
    """Those of a GPU and of other types than float32, with dropout from the generator that they draw from."""
    plain, other = gradients(build("none", dropout).double()), gradients(build(policy, dropout).double())
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def kept(model: MoxinLM) -> int:
    """Bytes that the forward pass allocates and does not free before the backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        hidden = model.hidden_states(ids(4))
    assert hidden.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.events())  # type: ignore[attr-defined]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("double", [False, True])
def test_what_is_kept_for_the_backward_pass(dropout: float, double: bool) -> None:
    """With this project's kernels and with PyTorch's. At most: inputs of blocks, what the last norm keeps, angles and a
    mask.
    """
    found = {}
    for policy in POLICIES:
        model = build(policy, dropout)
        found[policy] = kept(model.double() if double else model)
    states = 4 * 200 * SHAPE.hidden * (8 if double else 4)
    assert SHAPE.layers * states <= found["full"] <= (SHAPE.layers + 5) * states
    assert 3 * found["full"] < found["selective"] < 0.6 * found["none"]


def operations(model: MoxinLM) -> dict[str, int]:
    """Floating-point operations of a step's products."""
    with FlopCounterMode(display=False) as counter:
        gradients(model)
    return {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}


def test_selective_multiplies_no_matrix_again() -> None:
    """`full` runs a third more products; `selective` those of attention alone, which a CPU computes block by block."""
    none, selective, full = (operations(build(policy, 0.3)) for policy in POLICIES)
    forward = 2 * ids().numel() * SHAPE.layers * (2 * 32 * 8 * (4 + 2) + 3 * 32 * 96)
    assert none["aten.mm"] == selective["aten.mm"] == full["aten.mm"] - forward
    assert none["aten.bmm"] < selective["aten.bmm"] == full["aten.bmm"] <= 1.5 * none["aten.bmm"]
