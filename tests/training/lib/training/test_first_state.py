"""The state that a training began with, filled in again by the names of a checkpoint."""

from __future__ import annotations

import torch

from stages.lib.modeling.weights import FreshWeights, whole
from stages.lib.training.first_state import FirstState
from stages.lib.training.stored_tensors import Part

SHAPES = {"a.weight": (130, 6), "norm.weight": (6,)}


def test_weights_are_as_they_were_first_and_moments_are_zero() -> None:
    weights = FreshWeights(seed=3, layers=2)
    first = FirstState(weights, SHAPES)
    tensors = {
        kind: torch.full(shape, 7.0)
        for name, shape in SHAPES.items()
        for kind in (f"model.{name}", f"optimizer.{name}.exp_avg", f"optimizer.{name}.exp_avg_sq")
    }
    rows = torch.full((65, 6), 7.0)  # a process of several has some rows: from one block of drawing into the next
    first.read([tensors, {"model.a.weight": Part(rows, (60, 0))}])
    for name, shape in SHAPES.items():
        assert torch.equal(tensors[f"model.{name}"], weights(name, shape, whole(shape)))
        assert not tensors[f"optimizer.{name}.exp_avg"].any()
        assert not tensors[f"optimizer.{name}.exp_avg_sq"].any()
    assert torch.equal(rows, tensors["model.a.weight"][60:125])
    assert first.updates == 0
