"""When `stages.lib.training.backends.fsdp` exchanges gradients: whole ones of 8 billion parameters are 30 GiB."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.shape import ModelShape
from stages.lib.training.backends.base import Trainable, WindowBatch
from stages.lib.training.backends.fsdp import TorchBackend
from stages.lib.training.parallel_dims import ParallelDims
from stages.pretrain.spec import PretrainConfig

SHAPE = ModelShape(layers=1, hidden=16, intermediate=24, heads=2, kv_heads=1, head_dim=8, max_positions=32)


@pytest.mark.parametrize(("cast_weights", "exchanges"), [(True, [True] * 3), (False, [False, False, True])])
def test_with_cast_weights_each_micro_batch_exchanges_its_gradients(
    cast_weights: bool, exchanges: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig(
        shape=SHAPE, sequence_length=32, tokens=32 * 30, global_batch_size=3, precision="fp32", warmup_steps=1,
        device="cpu",
    )  # fmt: skip
    model: Any = MoxinLM(SHAPE, 97, 0.0)
    model.initialize(torch.Generator().manual_seed(3))
    trainable = Trainable(model, [], lambda batch: model.loss_sum(batch.ids)[0])
    backend, seen = TorchBackend(trainable, config, ParallelDims(torch.device("cpu")), cast_weights=cast_weights), []
    monkeypatch.setattr(backend, "_set_gradient_sync", seen.append)
    whole = WindowBatch(torch.randint(3, 97, (3, 32)), predicted=3 * 31)
    backend.step(whole.split(1), 1e-3, whole.predicted)
    assert seen == exchanges
