"""When `stages.lib.training.backends.fsdp` exchanges gradients: whole ones of 8 billion parameters are 30 GiB."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.shape import ModelShape
from stages.lib.modeling.weights import FreshWeights
from stages.lib.training.backends import fsdp
from stages.lib.training.backends.base import Trainable, WindowBatch
from stages.lib.training.backends.fsdp import TorchBackend
from stages.lib.training.parallel_dims import ParallelDims
from stages.lib.training.parallel_sizes import ParallelSizes
from stages.pretrain.spec import PretrainConfig

SHAPE = ModelShape(layers=1, hidden=16, intermediate=24, heads=2, kv_heads=1, head_dim=8, max_positions=32)


@pytest.mark.parametrize(
    ("zero", "exchanges", "cut_again"),
    [
        (1, [False, False, True], [False, False, True]),
        (2, [True] * 3, [False, False, True]),
        (3, [True] * 3, [True] * 3),
    ],
)
def test_zero_says_when_gradients_are_exchanged_and_weights_cut_again(
    zero: Literal[1, 2, 3], exchanges: list[bool], cut_again: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig(
        shape=SHAPE, sequence_length=32, tokens=32 * 30, global_batch_size=3, precision="fp32", warmup_steps=1,
        device="cpu", parallel=ParallelSizes(zero=zero),
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = MoxinLM(SHAPE, 97, 0.0)
    seen: dict[str, list[bool]] = {"sync": [], "last": [], "reshard": []}
    model.set_requires_gradient_sync = seen["sync"].append
    model.set_is_last_backward = seen["last"].append
    model.set_reshard_after_backward = seen["reshard"].append
    trainable = Trainable(model, FreshWeights(3, SHAPE.layers), [], lambda batch: model.loss_sum(batch.ids)[0])
    backend = TorchBackend(trainable, config, ParallelDims(torch.device("cpu")))
    monkeypatch.setattr(fsdp, "FSDPModule", MoxinLM)
    whole = WindowBatch(torch.randint(3, 97, (3, 32)), predicted=3 * 31)
    backend.step(whole.split(1), 1e-3, whole.predicted, lambda update: True)
    assert seen == {"sync": exchanges, "last": exchanges, "reshard": cut_again}
