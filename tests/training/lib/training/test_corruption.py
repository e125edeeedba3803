"""A bit of one process's weights turns: that is seen, processes are named, and the next attempt goes on from before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.lib.training.backends.fsdp import TorchBackend, here
from stages.lib.training.corruption import digest
from tests.support.pretraining import artifacts, config, single, train

__all__ = ["artifacts", "single"]  # fixtures: named here so that pytest finds them


def turn_a_bit(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Of the last process's norm, when it begins step `at`."""
    exact, begun = TorchBackend.step, []

    def step(self: TorchBackend, *given: Any) -> Any:
        begun.append(1)
        if len(begun) == at and self._dims.rank == self._dims.world_size - 1:
            here(self.model.get_parameter("model.norm.weight").detach()).view(torch.int32)[1] ^= 1
        return exact(self, *given)

    monkeypatch.setattr(TorchBackend, "step", step)


def test_what_is_held_alike_is_compared(
    tmp_path: Path, artifacts: Any, single: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensor parallel, whose processes have norms alike; every fourth step, so that rest is not looked at then."""
    made = config(dropout=0.2, compare_every=4, parallel={"tensor": 2})
    with monkeypatch.context() as patch:
        turn_a_bit(patch, 6)
        _, outcome = train(tmp_path, 2, made, artifacts)
    assert outcome.startswith(
        "InfraError: test: weights that are the same by layout differ at step 8, of process 0 on "
    )
    assert ", 1 on " in outcome
    after, outcome = train(tmp_path, 2, made, artifacts)
    assert outcome == "done"
    assert np.allclose(after, single[0][4:], atol=2e-5)  # from the checkpoint of step 4


def test_what_rests_must_not_change(tmp_path: Path, artifacts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, which nobody else has."""
    turn_a_bit(monkeypatch, 6)
    _, outcome = train(tmp_path, 2, config(), artifacts)
    assert outcome.startswith(
        "InfraError: test: weights or moments changed between two updates at step 6, of process 1"
    )


def test_any_bit_and_any_place_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.lib.training.corruption.CHUNK", 7)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        tensors = [torch.arange(20).to(dtype), torch.tensor(3).to(dtype)]
        whole, seen = digest(tensors), set[int]()
        kept = [tensor.clone() for tensor in tensors]
        words = tensors[0].view({8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize])
        for place in (0, 6, 7, 19):
            for bit in range(8 * dtype.itemsize):
                turned = 1 << bit if bit < 8 * dtype.itemsize - 1 else -(1 << bit)
                words[place] ^= turned
                seen.add(digest(tensors))
                words[place] ^= turned
        assert whole not in seen
        assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))
        assert digest([tensors[0].flip(0), tensors[1]]) != whole
